package main

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"

	"github.com/hashicorp/yamux"
)

// The first byte of a stream says what to do with it.
const (
	jobEcho   = 'E' // send back what comes until EOF
	jobSink   = 'S' // u64 count, then so many bytes: answers their SHA-256
	jobSource = 'D' // u64 count: answers so many bytes of pattern(count)
	jobCount  = 'H' // read to EOF, then answer the number of bytes in decimal
	jobAbort  = 'R' // read a little, then abort the stream
	jobResets = 'Q' // answers in decimal how many streams the other end has reset
)

var resets atomic.Int64

// serve handles streams until the session ends.
func serve(session *yamux.Session) {
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go func() {
			if err := handle(stream); errors.Is(err, yamux.ErrConnectionReset) {
				resets.Add(1)
			} else if err != nil {
				fmt.Fprintf(os.Stderr, "peer: stream %d: %v\n", stream.StreamID(), err)
			}
			_ = stream.Close()
		}()
	}
}

func handle(stream *yamux.Stream) error {
	var job [1]byte
	if _, err := io.ReadFull(stream, job[:]); err != nil {
		return err
	}
	switch job[0] {
	case jobEcho:
		_, err := io.Copy(stream, stream)
		return err
	case jobSink:
		return sink(stream)
	case jobSource:
		return source(stream)
	case jobCount:
		n, err := io.Copy(io.Discard, stream)
		if err == nil {
			_, err = fmt.Fprint(stream, n)
		}
		return err
	case jobAbort:
		var few [16]byte
		_, err := io.ReadFull(stream, few[:])
		return err // and our caller closes with bytes unread: see config()
	case jobResets:
		_, err := fmt.Fprint(stream, resets.Load())
		return err
	}
	return fmt.Errorf("no job %q", job[0])
}

func sink(stream io.ReadWriter) error {
	count, err := readCount(stream)
	if err != nil {
		return err
	}
	sum := sha256.New()
	if _, err = io.CopyN(sum, stream, count); err != nil {
		return err
	}
	_, err = stream.Write(sum.Sum(nil))
	return err
}

func source(stream io.ReadWriter) error {
	count, err := readCount(stream)
	if err != nil {
		return err
	}
	_, err = io.CopyN(stream, newPattern(uint64(count)), count)
	return err
}

func readCount(r io.Reader) (int64, error) {
	var b [8]byte
	_, err := io.ReadFull(r, b[:])
	return int64(binary.BigEndian.Uint64(b[:])), err
}

// pattern is an endless stream of bytes that a seed decides: xorshift64*, little-endian. The C side
// has the same in jobs.h.
type pattern struct {
	state uint64
	word  [8]byte
	left  int
}

func newPattern(seed uint64) *pattern {
	return &pattern{state: (seed + 1) * 0x9E3779B97F4A7C15}
}

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		if p.left == 0 {
			p.state ^= p.state >> 12
			p.state ^= p.state << 25
			p.state ^= p.state >> 27
			binary.LittleEndian.PutUint64(p.word[:], p.state*0x2545F4914F6CDD1D)
			p.left = 8
		}
		b[i] = p.word[8-p.left]
		p.left--
	}
	return len(b), nil
}
