// A whole backend in Go: PROXY NAME TARGET. The environment variable REVDIAL_TOKEN has the token.
// Streams of the proxy go to the target; after a lost connection it dials again.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/yamux"
)

// What the 101 is followed by may lie in the reader already.
type buffered struct {
	net.Conn
	io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.Reader.Read(p) }

func forward(session *yamux.Session, stream net.Conn, address string) {
	defer stream.Close()
	conn, err := net.Dial("tcp", address)
	if err != nil { // the client reads EOF: yamux has no way to reset a stream
		log.Print(err)
		return
	}
	defer conn.Close()
	target, sent := conn.(*net.TCPConn), make(chan struct{})
	go func() {
		defer close(sent)
		// Where a session is lost, yamux reads EOF, which is not the client's.
		if _, err := io.Copy(target, stream); err != nil || session.IsClosed() {
			target.SetLinger(0) // so that it is a reset
			target.Close()
		}
		target.CloseWrite()
	}()
	if _, err = io.Copy(stream, target); err != nil {
		target.SetLinger(0)
		return
	}
	stream.Close()
	<-sent
}

func serve(proxy, name, target string) error {
	conn, err := net.Dial("tcp", proxy)
	if err != nil {
		return err
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /revdial HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: revdial\r\nRevdial-Name: %s\r\nAuthorization: Bearer %s\r\n\r\n",
		proxy, name, os.Getenv("REVDIAL_TOKEN"))
	reader := bufio.NewReader(conn)
	answer, err := http.ReadResponse(reader, nil)
	if err != nil || answer.StatusCode != 101 {
		return fmt.Errorf("%v %v", answer, err)
	}
	session, err := yamux.Server(buffered{conn, reader}, nil)
	for err == nil {
		var stream net.Conn
		if stream, err = session.Accept(); err == nil {
			go forward(session, stream, target)
		}
	}
	return err
}

func main() {
	for ; ; time.Sleep(time.Second) {
		log.Print(serve(os.Args[1], os.Args[2], os.Args[3]))
	}
}
