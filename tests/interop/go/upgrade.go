package main

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	neturl "net/url"
	"strings"
	"time"
)

const handshakeTimeout = 10 * time.Second

// replayConn reads first what the HTTP parser had read ahead: yamux may begin in the segment that
// ended the handshake.
type replayConn struct {
	net.Conn
	ahead *bufio.Reader
}

func (c *replayConn) Read(b []byte) (int, error) { return c.ahead.Read(b) }

// upgrade dials a proxy and asks it to turn the connection round.
func upgrade(rawURL, name, token string) (net.Conn, error) {
	url, err := neturl.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	conn, err := net.DialTimeout("tcp", url.Host, handshakeTimeout)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\n"+
		"Upgrade: revdial\r\nAuthorization: Bearer %s\r\nRevdial-Name: %s\r\n\r\n",
		url.RequestURI(), url.Host, token, name)
	if err != nil {
		return nil, err
	}
	ahead := bufio.NewReader(conn)
	resp, err := http.ReadResponse(ahead, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return nil, fmt.Errorf("the proxy answered %s", resp.Status)
	}
	if !strings.EqualFold(resp.Header.Get("Upgrade"), "revdial") {
		return nil, fmt.Errorf("the 101 upgrades to %q", resp.Header.Get("Upgrade"))
	}
	_ = conn.SetDeadline(time.Time{})
	return &replayConn{conn, ahead}, nil
}

// acceptUpgrade waits for one backend and answers its request.
func acceptUpgrade(address, token string) (net.Conn, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	fmt.Println("listening on", listener.Addr())
	_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(handshakeTimeout))
	conn, err := listener.Accept()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	ahead := bufio.NewReader(conn)
	req, err := http.ReadRequest(ahead)
	if err != nil {
		return nil, fmt.Errorf("reading the request: %w", err)
	}
	if problem := badRequest(req, token); problem != "" {
		fmt.Fprintf(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
		return nil, fmt.Errorf("the request: %s", problem)
	}
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"+
		"Upgrade: revdial\r\n\r\n")
	_ = conn.SetDeadline(time.Time{})
	return &replayConn{conn, ahead}, err
}

func badRequest(req *http.Request, token string) string {
	switch {
	case req.Method != http.MethodGet || req.URL.Path != "/revdial":
		return req.Method + " " + req.URL.Path
	case !strings.EqualFold(req.Header.Get("Connection"), "Upgrade"):
		return "Connection: " + req.Header.Get("Connection")
	case !strings.EqualFold(req.Header.Get("Upgrade"), "revdial"):
		return "Upgrade: " + req.Header.Get("Upgrade")
	case req.Header.Get("Authorization") != "Bearer "+token:
		return "wrong or no bearer token"
	case req.Header.Get("Revdial-Name") == "":
		return "no Revdial-Name"
	}
	return ""
}
