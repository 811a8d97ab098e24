// peer is what one writes in Go today: hashicorp/yamux as it comes, and io.Copy.
//
//	peer proxy [ADDRESS]              prints where agents and clients may connect
//	peer agent PROXY TARGET           dials the proxy, carries its streams to the target
//	peer lib [-t SECONDS] JOB         the library alone: build/bench/lib's jobs, one measurement
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/hashicorp/yamux"
)

func main() {
	args := os.Args[1:]
	switch {
	case len(args) == 1 && args[0] == "proxy":
		proxyMain("127.0.0.1")
	case len(args) == 2 && args[0] == "proxy":
		proxyMain(args[1])
	case len(args) == 3 && args[0] == "agent":
		agentMain(args[1], args[2])
	case len(args) >= 2 && args[0] == "lib":
		libMain(args[1:])
	case len(args) == 2 && args[0] == "lib-server":
		libServerMain(args[1])
	default:
		fmt.Fprintln(os.Stderr, "usage: peer proxy [ADDRESS] | agent PROXY TARGET | lib [-t SECONDS] JOB")
		os.Exit(2)
	}
}

func config() *yamux.Config {
	c := yamux.DefaultConfig()
	c.LogOutput = io.Discard
	return c
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}
