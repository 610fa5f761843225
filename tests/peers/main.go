// Go's net/http client as a peer: mixed requests over connections that are kept, each answer checked to the byte.
//
// Knows: what mix.py asks for and answers (spell, echo), by its own words. Never sees: how the server is made.
// Invariant: the first answer that differs ends the program with status 1 and says what differed; status 0 means
// that every request was sent once, answered and checked.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptrace"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const largest = 64 * 1024

var edges = []int{0, 1, 4096, 8192, 16 * 1024, 20 * 1024, 23 * 1024, 32 * 1024, largest}

func fail(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}

func spell(number, size int) []byte {
	word := fmt.Sprintf("%d ", number)
	return bytes.Repeat([]byte(word), size/len(word)+1)[:size]
}

func someSize(chance *rand.Rand) int {
	switch chance.Intn(4) {
	case 0:
		return 0
	case 1:
		return 1 + chance.Intn(64)
	case 2:
		size := edges[chance.Intn(len(edges))] + chance.Intn(401) - 200
		if size < 0 {
			return 0
		}
		if size > largest {
			return largest
		}
		return size
	}
	return chance.Intn(largest + 1)
}

// pieces gives a body in pieces of any size. It hides its length, so that the client has to chunk.
type pieces struct {
	rest   []byte
	chance *rand.Rand
}

func (p *pieces) Read(into []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	size := 1 + p.chance.Intn(len(p.rest))
	copied := copy(into, p.rest[:size])
	p.rest = p.rest[copied:]
	return copied, nil
}

// used holds the client's address of each connection that carried a request. The transport makes more of them
// than it needs, and closes some without having used them.
var used sync.Map

var trace = &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
	used.Store(got.Conn.LocalAddr().String(), true)
}}

// ask sends one request and checks the answer; it reports whether the request asked for the connection's end.
func ask(client *http.Client, url string, number int, chance *rand.Rand) bool {
	methods := []string{"GET", "GET", "HEAD", "DELETE", "POST", "PUT", "POST", "PUT"}
	kind := chance.Intn(len(methods))
	method, size := methods[kind], someSize(chance)
	target := fmt.Sprintf("/%d?size=%d&q=a%%20b%%26%%C3%%A9", number, size)
	wanted := spell(number, size)
	var body io.Reader
	if method == "POST" || method == "PUT" {
		wanted = make([]byte, size)
		chance.Read(wanted)
		body = bytes.NewReader(wanted)
		if kind >= 6 {
			// Not the chance of the worker: the transport reads a body in a goroutine of its own.
			body = &pieces{wanted, rand.New(rand.NewSource(chance.Int63()))}
		}
	}
	request, problem := http.NewRequest(method, url+target, body)
	if problem != nil {
		fail("%s %s: %v", method, target, problem)
	}
	if body != nil && size > 0 && chance.Intn(10) == 0 {
		request.Header.Set("Expect", "100-continue")
	}
	request.Close = chance.Intn(50) == 0

	reply, problem := client.Do(request.WithContext(httptrace.WithClientTrace(request.Context(), trace)))
	if problem != nil {
		fail("%s %s: %v", method, target, problem)
	}
	got, problem := io.ReadAll(reply.Body)
	reply.Body.Close()
	if problem != nil {
		fail("%s %s: after %d of %d bytes: %v", method, target, len(got), len(wanted), problem)
	}
	if reply.StatusCode != 200 || reply.ProtoMinor != 1 {
		fail("%s %s: %s %s", method, target, reply.Proto, reply.Status)
	}
	if told := reply.Header.Get("X-Told"); told != method+" "+target {
		fail("%s %s: the answer is to %s", method, target, told)
	}
	if reply.ContentLength != int64(len(wanted)) {
		fail("%s %s: Content-Length is %d, not %d", method, target, reply.ContentLength, len(wanted))
	}
	if method == "HEAD" {
		wanted = nil
	}
	if !bytes.Equal(got, wanted) {
		at := 0
		for at < len(got) && at < len(wanted) && got[at] == wanted[at] {
			at++
		}
		fail("%s %s: %d of %d bytes, wrong from %d on", method, target, len(got), len(wanted), at)
	}
	return request.Close
}

func main() {
	url := flag.String("url", "", "of the server, without a path")
	count := flag.Int("count", 300, "requests")
	workers := flag.Int("workers", 8, "goroutines, and connections at the same time")
	seed := flag.Int64("seed", 1, "of everything random")
	patience := flag.Duration("patience", 20*time.Second, "after which an answer counts as never coming")
	flag.Parse()

	client := &http.Client{Timeout: *patience, Transport: &http.Transport{
		MaxConnsPerHost: *workers, MaxIdleConnsPerHost: *workers, DisableCompression: true,
		ExpectContinueTimeout: *patience,
	}}
	var next, closed int64
	var all sync.WaitGroup
	for worker := 0; worker < *workers; worker++ {
		all.Add(1)
		go func(worker int) {
			defer all.Done()
			chance := rand.New(rand.NewSource(*seed + int64(worker)))
			for number := atomic.AddInt64(&next, 1); number <= int64(*count); number = atomic.AddInt64(&next, 1) {
				if ask(client, *url, int(number), chance) {
					atomic.AddInt64(&closed, 1)
				}
			}
		}(worker)
	}
	all.Wait()
	connections := 0
	used.Range(func(any, any) bool {
		connections++
		return true
	})
	fmt.Printf("seed=%d requests=%d closed=%d connections=%d\n", *seed, *count, closed, connections)
}
