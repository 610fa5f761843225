// The shapes in Go's fasthttp.  Knows its own way of each; run it, from bench/, as fasthttp PORT.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	text   = "text/plain; charset=utf-8"
	binary = "application/octet-stream"
	hello  = "Hello, World!\n"
)

type item struct {
	Number int     `json:"number"`
	Name   string  `json:"name"`
	Price  float64 `json:"price"`
}

type document struct {
	ID     int      `json:"id"`
	Active bool     `json:"active"`
	Score  float64  `json:"score"`
	Tags   []string `json:"tags"`
	Items  []item   `json:"items"`
	Note   string   `json:"note"`
}

var (
	fixed    = makeDocument()
	megabyte = []byte(strings.Repeat("x", 1<<20))
	calls    int64
	files    = (&fasthttp.FS{Root: "build"}).NewRequestHandler()
)

// The document of shapes.py; its note makes up for the spaces that Go does not write.
func makeDocument() document {
	d := document{ID: 4711, Active: true, Score: 98.25, Tags: []string{"warm", "worker", "pool"}}
	for number := 1; number <= 12; number++ {
		d.Items = append(d.Items, item{number, "item " + digits(number), float64(number) * 1.5})
	}
	short, err := json.Marshal(d)
	if err != nil {
		log.Fatal(err)
	}
	d.Note = strings.Repeat(".", 1024-len(short))
	return d
}

func digits(number int) string {
	return string(fasthttp.AppendUint(nil, number))
}

func greet(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType(text)
	ctx.WriteString(hello)
}

func query(ctx *fasthttp.RequestCtx) {
	args := ctx.QueryArgs()
	trace := ctx.Request.Header.Peek("X-Trace")
	if trace == nil {
		trace = []byte("-")
	}
	ctx.SetContentType(text)
	ctx.Write(args.Peek("name"))
	ctx.WriteString(" ")
	ctx.Write(args.Peek("page"))
	ctx.WriteString(" ")
	ctx.Write(trace)
	ctx.WriteString("\n")
}

func head(ctx *fasthttp.RequestCtx) {
	fields := &ctx.Request.Header
	out := fasthttp.AppendUint(nil, len(fields.UserAgent()))
	out = append(out, ' ')
	out = fasthttp.AppendUint(out, len(fields.Peek("Accept-Language")))
	out = append(out, ' ')
	out = fasthttp.AppendUint(out, len(fields.Peek("Cookie")))
	ctx.SetContentType(text)
	ctx.Write(append(out, '\n'))
}

func sendJSON(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType("application/json")
	body, err := json.Marshal(&fixed)
	if err != nil {
		log.Fatal(err)
	}
	ctx.Write(body)
}

func echo(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType(binary)
	ctx.Write(ctx.PostBody())
}

func sendMegabyte(ctx *fasthttp.RequestCtx) {
	ctx.SetContentType(binary)
	ctx.Response.SetBodyRaw(megabyte)
}

func handle(ctx *fasthttp.RequestCtx) {
	switch string(ctx.Path()) {
	case "/":
		greet(ctx)
	case "/query":
		query(ctx)
	case "/head":
		head(ctx)
	case "/json":
		sendJSON(ctx)
	case "/echo":
		echo(ctx)
	case "/1m":
		sendMegabyte(ctx)
	case "/file":
		fasthttp.ServeFileUncompressed(ctx, "build/static/64k.bin")
		ctx.SetContentType(binary)
	case "/some":
		if atomic.AddInt64(&calls, 1)%100 == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		greet(ctx)
	case "/sleep":
		time.Sleep(10 * time.Millisecond)
		greet(ctx)
	default: // below /static, or not there
		files(ctx)
	}
}

func main() {
	server := &fasthttp.Server{Handler: handle, Name: "fastserve"}
	log.Fatal(server.ListenAndServe("127.0.0.1:" + os.Args[1]))
}
