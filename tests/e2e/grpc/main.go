// gRPC's own interoperability server and client calls, through revdial.
//
//	grpc serve NAME [HOST:PORT]   serves there, or on a free port, which it prints
//	grpc calls HOST:PORT    the four kinds of calls, cancel and deadline; through the CONNECT of
//	                        HTTPS_PROXY, if that is set
//	grpc channels DIR       the channels of examples/grpc, through --sockets DIR; reads commands
//	                        for the test from stdin
package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	channels "revdial/grpc"
)

var plain = grpc.WithTransportCredentials(insecure.NewCredentials())

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// serve answers with its name in a header, so that a client sees who did.
func serve(name, address string) {
	listener, err := net.Listen("tcp", address)
	check(err)
	say := func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		grpc.SetHeader(ctx, metadata.Pairs("name", name))
		return next(ctx, req)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(say))
	testpb.RegisterTestServiceServer(server, interop.NewTestServer())
	fmt.Println("serving on", listener.Addr())
	check(server.Serve(listener))
}

func calls(address string) {
	conn, err := grpc.Dial(address, plain)
	check(err)
	client := testpb.NewTestServiceClient(conn)
	interop.DoEmptyUnaryCall(client)
	interop.DoLargeUnaryCall(client)
	fmt.Println("unary")
	interop.DoClientStreaming(client)
	fmt.Println("client streaming")
	interop.DoServerStreaming(client)
	fmt.Println("server streaming")
	interop.DoPingPong(client)
	interop.DoEmptyStream(client)
	fmt.Println("both ways")
	interop.DoCancelAfterBegin(client)
	interop.DoCancelAfterFirstResponse(client)
	fmt.Println("cancel")
	interop.DoTimeoutOnSleepingServer(client)
	fmt.Println("deadline")
}

// who counts which backends answer n calls.
func who(conn *grpc.ClientConn, n int) string {
	client, count := testpb.NewTestServiceClient(conn), map[string]int{}
	for i := 0; i < n; i++ {
		var header metadata.MD
		ctx, done := context.WithTimeout(context.Background(), 10*time.Second)
		_, err := client.EmptyCall(ctx, &testpb.Empty{}, grpc.Header(&header), grpc.WaitForReady(true))
		done()
		check(err)
		count[strings.Join(header.Get("name"), ",")]++
	}
	var all []string
	for name, n := range count {
		all = append(all, fmt.Sprintf("%s=%d", name, n))
	}
	sort.Strings(all)
	return strings.Join(all, " ")
}

func watch(dir string) {
	ctx := context.Background()
	all, err := channels.AsChannel(ctx, dir, plain)
	check(err)
	go channels.Watch(ctx, dir,
		func(key string) { fmt.Println("opened", key) },
		func(key string) { fmt.Println("closed", key) })
	keys := map[string]*grpc.ClientConn{}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch words := strings.Fields(in.Text()); words[0] {
		case "all":
			fmt.Println("all", who(all, 60))
		case "key":
			if keys[words[1]] == nil {
				keys[words[1]], err = channels.KeyAsChannel(dir, words[1], 2, plain)
				check(err)
			}
			fmt.Println("key", who(keys[words[1]], 20))
		case "close":
			for _, conn := range keys {
				conn.Close()
			}
			fmt.Println("close all")
		case "keys":
			fmt.Println("keys", strings.Join(channels.Keys(dir), " "))
		}
	}
}

func main() {
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2], append(os.Args, "127.0.0.1:0")[3])
	case "calls":
		calls(os.Args[2])
	case "channels":
		watch(os.Args[2])
	}
}
