// What Go's net/http reads in a connection's bytes. Same input and output as ours.c; its fields
// have no order, so they are not printed.
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
		fmt.Fprintln(out, judge(out, data))
		out.Flush()
	}
}
