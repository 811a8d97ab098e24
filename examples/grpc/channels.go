// Package channels is gRPC to backends behind NAT, through revdial-proxy --sockets DIR, which keeps
// a Unix socket DIR/NAME.sock for each backend that is connected.
package channels

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

const roundRobin = `{"loadBalancingConfig": [{"round_robin": {}}]}`

// Keys lists the backends that are connected.
func Keys(dir string) []string {
	keys, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	for i, path := range keys {
		keys[i] = strings.TrimSuffix(filepath.Base(path), ".sock")
	}
	return keys
}

// Watch calls changed with what Keys says, at once and after each change, until ctx ends.
func Watch(ctx context.Context, dir string, changed func(keys []string)) {
	last := []string{"not a name"}
	for tick := time.NewTicker(50 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		if keys := Keys(dir); !slices.Equal(keys, last) {
			changed(keys)
			last = keys
		}
	}
}

func dial(dir string) grpc.DialOption {
	return grpc.WithContextDialer(func(ctx context.Context, key string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, key+".sock"))
	})
}

// KeyAsChannel is a channel to the backends of one name; the proxy chooses among them.
func KeyAsChannel(dir, key string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.Dial("passthrough:///"+key, append(opts, dial(dir))...)
}

// AsChannel is a channel to all backends, also those that come later: each call goes to the next.
func AsChannel(ctx context.Context, dir string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	all := manual.NewBuilderWithScheme("revdial")
	all.InitialState(resolver.State{})
	opts = append(opts, dial(dir), grpc.WithResolvers(all), grpc.WithDefaultServiceConfig(roundRobin))
	conn, err := grpc.Dial("revdial:///", opts...)
	if err == nil {
		go Watch(ctx, dir, func(keys []string) {
			var state resolver.State
			for _, key := range keys {
				state.Addresses = append(state.Addresses, resolver.Address{Addr: key})
			}
			all.UpdateState(state)
		})
	}
	return conn, err
}
