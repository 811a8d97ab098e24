// What Go's net/http reads in a connection's bytes. Same input and output as ours.c, or, with a
// word, as ours_response.c; its fields have no order, so they are not printed.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
)

func judge(out io.Writer, data []byte) string {
	from := bytes.NewReader(data)
	r := bufio.NewReader(from)
	for {
		request, err := http.ReadRequest(r)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "more"
		}
		if err != nil {
			return "refused " + fmt.Sprintf("%q", err.Error())
		}
		body, err := io.ReadAll(request.Body)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return "more"
		}
		if err != nil {
			return "refused " + fmt.Sprintf("%q", err.Error())
		}
		end := len(data) - from.Len() - r.Buffered()
		fmt.Fprintf(out, "=%x =%x =%x =%x %d * ", request.Method, request.RequestURI, request.Host, body,
			end)
	}
}

func judgeResponse(out io.Writer, data []byte, door string) string {
	from := bytes.NewReader(data)
	r := bufio.NewReader(from)
	asked := &http.Request{Method: "GET"}
	if door == "connect" {
		asked.Method = "CONNECT"
	}
	for {
		response, err := http.ReadResponse(r, asked)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "more"
		}
		if err != nil {
			return "refused " + fmt.Sprintf("%q", err.Error())
		}
		fmt.Fprintf(out, "%d %d ", response.StatusCode, len(data)-from.Len()-r.Buffered())
		if response.StatusCode == 101 || response.StatusCode >= 200 {
			return "over"
		}
	}
}

func main() {
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var size uint32
		if binary.Read(in, binary.BigEndian, &size) != nil {
			return
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(in, data); err != nil {
			os.Exit(1)
		}
		if len(os.Args) > 1 {
			fmt.Fprintln(out, judgeResponse(out, data, os.Args[1]))
		} else {
			fmt.Fprintln(out, judge(out, data))
		}
		out.Flush()
	}
}
