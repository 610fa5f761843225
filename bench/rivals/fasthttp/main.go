// The same hello in Go's fasthttp.  Knows nothing of the bench but the port: run it as fasthttp PORT.
package main

import (
	"log"
	"os"

	"github.com/valyala/fasthttp"
)

func hello(ctx *fasthttp.RequestCtx) {
	if string(ctx.Path()) == "/" {
		ctx.SetContentType("text/plain; charset=utf-8")
		ctx.WriteString("Hello, World!\n")
	} else {
		ctx.NotFound()
	}
}

func main() {
	server := &fasthttp.Server{Handler: hello, Name: "fastserve"}
	log.Fatal(server.ListenAndServe("127.0.0.1:" + os.Args[1]))
}
