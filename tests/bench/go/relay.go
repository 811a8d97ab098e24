package main

import (
	"fmt"
	"io"
	"net"

	"github.com/hashicorp/yamux"
)

func proxyMain(address string) {
	agents, err := net.Listen("tcp", address+":0")
	check(err)
	clients, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println("listening on", agents.Addr())
	fmt.Println("listening on", clients.Addr(), "for clients")
	conn, err := agents.Accept()
	check(err)
	session, err := yamux.Client(conn, config())
	check(err)
	for {
		client, err := clients.Accept()
		check(err)
		go func() {
			stream, err := session.OpenStream()
			if err != nil {
				_ = client.Close()
				return
			}
			relay(client.(*net.TCPConn), stream)
		}()
	}
}

func agentMain(proxy, target string) {
	conn, err := net.Dial("tcp", proxy)
	check(err)
	session, err := yamux.Server(conn, config())
	check(err)
	for {
		stream, err := session.AcceptStream()
		check(err)
		go func() {
			to, err := net.Dial("tcp", target)
			if err != nil {
				_ = stream.Close()
				return
			}
			relay(to.(*net.TCPConn), stream)
		}()
	}
}

// relay copies both ways, with half-close, until both are over.
func relay(conn *net.TCPConn, stream *yamux.Stream) {
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(stream, conn)
	_ = stream.Close()
	<-done
	_ = conn.Close()
}
