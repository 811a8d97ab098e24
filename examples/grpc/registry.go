package channels

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Keys lists the backends that are connected.
func Keys(dir string) []string {
	keys, _ := filepath.Glob(filepath.Join(dir, "*.sock"))
	for i, path := range keys {
		keys[i] = strings.TrimSuffix(filepath.Base(path), ".sock")
	}
	return keys
}

// Watch calls opened for each backend that is connected and for those that come, and closed for
// those that leave, until ctx ends.
func Watch(ctx context.Context, dir string, opened, closed func(key string)) {
	var last []string
	for tick := time.NewTicker(50 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		keys := Keys(dir)
		for _, key := range keys {
			if !slices.Contains(last, key) {
				opened(key)
			}
		}
		for _, key := range last {
			if !slices.Contains(keys, key) {
				closed(key)
			}
		}
		last = keys
	}
}
