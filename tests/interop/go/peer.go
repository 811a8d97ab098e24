// peer is the other end of the interoperability tests: hashicorp/yamux as it comes, behind a
// handshake done by hand. It sends no Revdial-* header but the name, so that revdial applies the
// rules for stock yamux peers.
//
//	peer backend --url http://HOST:PORT/revdial --name N --token T   dials a proxy, serves streams
//	peer proxy --listen 127.0.0.1:0 --token T                        accepts a backend, runs checks
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/hashicorp/yamux"
)

func main() {
	if len(os.Args) < 2 {
		usage()
	}
	switch os.Args[1] {
	case "backend":
		backendMain(os.Args[2:])
	case "proxy":
		proxyMain(os.Args[2:])
	default:
		usage()
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: peer backend --url URL --name NAME --token TOKEN\n"+
		"       peer proxy --listen ADDRESS --token TOKEN")
	os.Exit(2)
}

func backendMain(args []string) {
	flags := flag.NewFlagSet("backend", flag.ExitOnError)
	url := flags.String("url", "", "where the proxy listens")
	name := flags.String("name", "peer", "name to register")
	token := flags.String("token", "", "bearer token")
	_ = flags.Parse(args)

	conn, err := upgrade(*url, *name, *token)
	if err != nil {
		fatal(err)
	}
	session, err := yamux.Server(conn, config())
	if err != nil {
		fatal(err)
	}
	serve(session)
}

func proxyMain(args []string) {
	flags := flag.NewFlagSet("proxy", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "address to listen on")
	token := flags.String("token", "", "bearer token that the backend must present")
	_ = flags.Parse(args)

	conn, err := acceptUpgrade(*listen, *token)
	if err != nil {
		fatal(err)
	}
	session, err := yamux.Client(conn, config())
	if err != nil {
		fatal(err)
	}
	if !runChecks(session) {
		os.Exit(1)
	}
}

// config is the library's default but for one value. This library has no call that resets a stream:
// it sends RST only when a stream that it closed is not closed by the other end in time.
func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.StreamCloseTimeout = 3 * time.Second
	return c
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "peer:", err)
	os.Exit(1)
}
