// The shapes in Go's own net/http.  Knows its own way of each; run it, from bench/, as nethttp PORT.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
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
	files    = http.FileServer(http.Dir("build"))
)

// The document of shapes.py; its note makes up for the spaces that Go does not write.
func makeDocument() document {
	d := document{ID: 4711, Active: true, Score: 98.25, Tags: []string{"warm", "worker", "pool"}}
	for number := 1; number <= 12; number++ {
		d.Items = append(d.Items, item{number, fmt.Sprintf("item %d", number), float64(number) * 1.5})
	}
	short, err := json.Marshal(d)
	if err != nil {
		log.Fatal(err)
	}
	d.Note = strings.Repeat(".", 1024-len(short))
	return d
}

func typed(w http.ResponseWriter, kind string) http.ResponseWriter {
	w.Header().Set("Server", "fastserve")
	w.Header().Set("Content-Type", kind)
	return w
}

func greet(w http.ResponseWriter) {
	io.WriteString(typed(w, text), hello)
}

func query(w http.ResponseWriter, r *http.Request) {
	args := r.URL.Query()
	trace := r.Header.Get("X-Trace")
	if trace == "" {
		trace = "-"
	}
	io.WriteString(typed(w, text), args.Get("name")+" "+args.Get("page")+" "+trace+"\n")
}

func head(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(typed(w, text), "%d %d %d\n",
		len(r.Header.Get("User-Agent")), len(r.Header.Get("Accept-Language")), len(r.Header.Get("Cookie")))
}

func sendJSON(w http.ResponseWriter) {
	body, err := json.Marshal(&fixed)
	if err != nil {
		log.Fatal(err)
	}
	typed(w, "application/json").Write(body)
}

// Without the length, a reply over 2 KiB would be chunked.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	typed(w, binary).Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

func sendMegabyte(w http.ResponseWriter) {
	typed(w, binary).Header().Set("Content-Length", strconv.Itoa(len(megabyte)))
	w.Write(megabyte)
}

func handle(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/":
		greet(w)
	case "/query":
		query(w, r)
	case "/head":
		head(w, r)
	case "/json":
		sendJSON(w)
	case "/echo":
		echo(w, r)
	case "/1m":
		sendMegabyte(w)
	case "/file":
		http.ServeFile(typed(w, binary), r, "build/static/64k.bin")
	case "/some":
		if atomic.AddInt64(&calls, 1)%100 == 0 {
			time.Sleep(20 * time.Millisecond)
		}
		greet(w)
	case "/sleep":
		time.Sleep(10 * time.Millisecond)
		greet(w)
	default: // below /static, or not there
		w.Header().Set("Server", "fastserve")
		files.ServeHTTP(w, r)
	}
}

func main() {
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], http.HandlerFunc(handle)))
}
