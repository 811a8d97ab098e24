// relay is a Go library of yamux at one end of a session with revdial, as a relay between its streams
// and TCP: FIN and RST go over in both directions, as far as the library has them. With frp.mod for
// go.mod, hashicorp is frp's fork of it.
//
//	relay LIBRARY backend URL TARGET [FEATURES]   dials a proxy; connects each stream to TARGET
//	relay LIBRARY proxy SCHEME [FEATURES]         takes a backend (http: raw carrier, ws: WebSocket)
//	                                              and clients: each of these becomes a stream
//
// A proxy prints 'listening on ADDRESS' for backends, and then for clients. No Revdial- header but the
// name is sent, so that revdial applies the rules for stock peers, unless FEATURES are given.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	hashicorp "github.com/hashicorp/yamux"
	libp2p4 "github.com/libp2p/go-yamux/v4"
	libp2p5 "github.com/libp2p/go-yamux/v5"
)

type stream interface {
	io.ReadWriter
	CloseWrite() error
	Reset() error
}

type session struct {
	accept func() (stream, error)
	open   func() (stream, error)
}

// Libraries that only have Close: it sends FIN, and reading goes on.
type closeOnly struct{ io.ReadWriteCloser }

func (s closeOnly) CloseWrite() error { return s.Close() }
func (s closeOnly) Reset() error      { return s.Close() }

func ofHashicorp(conn net.Conn, isClient bool) (session, error) {
	start := hashicorp.Server
	if isClient {
		start = hashicorp.Client
	}
	config := hashicorp.DefaultConfig()
	config.KeepAliveInterval = 500 * time.Millisecond // so that it pings while we look
	s, err := start(conn, config)
	if err != nil {
		return session{}, err
	}
	return session{
		func() (stream, error) { st, err := s.AcceptStream(); return closeOnly{st}, err },
		func() (stream, error) { st, err := s.OpenStream(); return closeOnly{st}, err },
	}, nil
}

func ofLibp2p4(conn net.Conn, isClient bool) (session, error) {
	start := libp2p4.Server
	if isClient {
		start = libp2p4.Client
	}
	s, err := start(conn, nil, nil)
	if err != nil {
		return session{}, err
	}
	return session{
		func() (stream, error) { return s.AcceptStream() },
		func() (stream, error) { return s.OpenStream(context.Background()) },
	}, nil
}

func ofLibp2p5(conn net.Conn, isClient bool) (session, error) {
	start := libp2p5.Server
	if isClient {
		start = libp2p5.Client
	}
	s, err := start(conn, nil, nil)
	if err != nil {
		return session{}, err
	}
	return session{
		func() (stream, error) { return s.AcceptStream() },
		func() (stream, error) { return s.OpenStream(context.Background()) },
	}, nil
}

var libraries = map[string]func(net.Conn, bool) (session, error){
	"hashicorp": ofHashicorp, "go-yamux-4": ofLibp2p4, "go-yamux-5": ofLibp2p5,
}

var relays sync.WaitGroup

// copyBoth joins a stream with a TCP connection until both directions have ended.
func copyBoth(st stream, conn *net.TCPConn) {
	var both sync.WaitGroup
	relays.Add(1)
	defer relays.Done()
	var once sync.Once
	abort := func() {
		_ = st.Reset()
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}
	half := func(to io.Writer, from io.Reader, finish func() error) {
		defer both.Done()
		if _, err := io.Copy(to, from); err != nil {
			once.Do(abort)
		} else {
			_ = finish()
		}
	}
	both.Add(2)
	go half(struct{ io.Writer }{st}, struct{ io.Reader }{conn}, st.CloseWrite)
	go half(struct{ io.Writer }{conn}, st, conn.CloseWrite)
	both.Wait()
	_ = conn.Close()
}

func backend(library, url, target, features string) {
	conn := ask(url, features)
	s, err := libraries[library](conn, false)
	check(err)
	for {
		st, err := s.accept()
		sessionCheck(err)
		go func() {
			conn, err := net.Dial("tcp", target)
			if err != nil {
				_ = st.Reset()
				return
			}
			copyBoth(st, conn.(*net.TCPConn))
		}()
	}
}

func proxy(library, scheme, features string) {
	backends, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Printf("listening on %s\nlistening on %s for clients\n", backends.Addr(), clients.Addr())
	s, err := libraries[library](answer(backends, scheme, features), true)
	check(err)
	go func() { // what the other side opens is not wanted, and the library has no call for that
		for {
			st, err := s.accept()
			sessionCheck(err)
			_ = st.Reset()
		}
	}()
	for {
		conn, err := clients.Accept()
		check(err)
		go func() {
			st, err := s.open()
			if err != nil {
				_ = conn.(*net.TCPConn).SetLinger(0)
				_ = conn.Close()
				return
			}
			copyBoth(st, conn.(*net.TCPConn))
		}()
	}
}

func headers(features string) http.Header {
	h := http.Header{}
	if features != "" {
		h.Set("Revdial-Version", "1")
		h.Set("Revdial-Features", features)
	}
	return h
}

// ask dials a proxy and turns the connection round.
func ask(url, features string) net.Conn {
	h := headers(features)
	h.Set("Authorization", "Bearer "+os.Getenv("REVDIAL_TOKEN"))
	h.Set("Revdial-Name", "peer")
	if strings.HasPrefix(url, "ws:") {
		options := &websocket.DialOptions{HTTPHeader: h, Subprotocols: []string{"revdial"}}
		socket, _, err := websocket.Dial(context.Background(), url, options)
		check(err)
		return bytesOf(socket)
	}
	req, err := http.NewRequest("GET", url, nil)
	check(err)
	req.Header = h
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "revdial")
	conn, err := net.Dial("tcp", req.URL.Host)
	check(err)
	check(req.Write(conn))
	ahead := bufio.NewReader(conn)
	resp, err := http.ReadResponse(ahead, req)
	check(err)
	if resp.StatusCode != http.StatusSwitchingProtocols {
		check(fmt.Errorf("the proxy answered %s", resp.Status))
	}
	return &replayConn{conn, ahead}
}

// answer takes the upgrade of one backend.
func answer(listener net.Listener, scheme, features string) net.Conn {
	got := make(chan net.Conn, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, value := range headers(features) {
			w.Header()[name] = value
		}
		if r.Header.Get("Authorization") != "Bearer "+os.Getenv("REVDIAL_TOKEN") {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if scheme == "ws" {
			options := &websocket.AcceptOptions{Subprotocols: []string{"revdial"}}
			socket, err := websocket.Accept(w, r, options)
			check(err)
			got <- bytesOf(socket)
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "revdial")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, ahead, err := w.(http.Hijacker).Hijack()
		check(err)
		got <- &replayConn{conn, ahead.Reader}
	})}
	go func() { _ = server.Serve(listener) }()
	return <-got
}

func bytesOf(socket *websocket.Conn) net.Conn {
	socket.SetReadLimit(-1)
	return websocket.NetConn(context.Background(), socket, websocket.MessageBinary)
}

// replayConn reads first what the HTTP parser had read ahead: yamux may begin in the segment that ended
// the handshake.
type replayConn struct {
	net.Conn
	ahead *bufio.Reader
}

func (c *replayConn) Read(b []byte) (int, error) { return c.ahead.Read(b) }

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "relay:", err)
		os.Exit(1)
	}
}

// sessionCheck ends the program with the session, once each stream has said to its connection how it
// ended.
func sessionCheck(err error) {
	if err != nil {
		relays.Wait()
	}
	check(err)
}

func main() {
	args := append(os.Args, "", "", "")
	switch {
	case len(os.Args) > 4 && args[2] == "backend" && libraries[args[1]] != nil:
		backend(args[1], args[3], args[4], args[5])
	case len(os.Args) > 3 && args[2] == "proxy" && libraries[args[1]] != nil:
		proxy(args[1], args[3], args[4])
	}
	check(fmt.Errorf("usage: relay LIBRARY backend URL TARGET [FEATURES] | proxy SCHEME [FEATURES]"))
}
