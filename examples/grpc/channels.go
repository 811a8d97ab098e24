// Package channels is gRPC to backends behind NAT, through revdial-proxy --sockets DIR, which keeps
// a Unix socket DIR/NAME.sock for each name of a backend that is connected.
package channels

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// What stands behind a '#' tells connections to one key apart.
func state(keys ...string) (all resolver.State) {
	for _, key := range keys {
		all.Addresses = append(all.Addresses, resolver.Address{Addr: key})
	}
	return all
}

func channel(dir string, to *manual.Resolver, opts []grpc.DialOption) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		key, _, _ := strings.Cut(address, "#")
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, key+".sock"))
	}
	return grpc.Dial("revdial:///", append(opts, grpc.WithContextDialer(dial),
		grpc.WithResolvers(to), grpc.WithDefaultServiceConfig(roundRobin))...)
}

// KeyAsChannel is a channel to the backends of one name, on n connections: each call goes to the
// next of them. The proxy gives each connection a backend, one after the other unless told otherwise.
func KeyAsChannel(dir, key string, n int, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	to, keys := manual.NewBuilderWithScheme("revdial"), make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s#%d", key, i)
	}
	to.InitialState(state(keys...))
	return channel(dir, to, opts)
}

// AsChannel is a channel to all backends, also those that come later: each call goes to the next.
func AsChannel(ctx context.Context, dir string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := manual.NewBuilderWithScheme("revdial")
	all.InitialState(state())
	conn, err := channel(dir, all, opts)
	changed := func(string) { all.UpdateState(state(Keys(dir)...)) }
	if err == nil {
		go Watch(ctx, dir, changed, changed)
	}
	return conn, err
}
