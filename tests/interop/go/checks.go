package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	bulkBytes    = 64 << 20
	checkTimeout = 60 * time.Second
)

// runChecks puts the backend at the other end through its paces. It knows the jobs E, R, S, D, H
// and Q as serve.go does.
func runChecks(session *yamux.Session) bool {
	checks := []struct {
		name string
		run  func(*yamux.Session) error
	}{
		{"ping", func(s *yamux.Session) error { _, err := s.Ping(); return err }},
		{"echo", func(s *yamux.Session) error { return echo(s, 1<<16) }},
		{"empty_echo", func(s *yamux.Session) error { return echo(s, 0) }},
		{"200_streams_at_once", manyStreams},
		{"64_MB_to_the_backend", upload},
		{"64_MB_from_the_backend", download},
		{"64_MB_both_ways_on_one_stream", func(s *yamux.Session) error { return echo(s, bulkBytes) }},
		{"half_close", halfClose},
		{"reset_by_us_reaches_the_backend", resetByUs},
		{"reset_by_the_backend_is_an_error", resetByBackend},
		{"1000_streams_in_a_row", manyInARow},
		{"nothing_is_left_open", nothingLeft},
	}
	passed, failed := 0, 0
	for _, c := range checks {
		if err := bounded(func() error { return c.run(session) }); err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n", c.name, err)
		} else {
			passed++
			fmt.Printf("ok %s\n", c.name)
		}
	}
	_ = session.Close()
	fmt.Printf("%d passed, %d failed\n", passed, failed)
	return failed == 0
}

func bounded(run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-time.After(checkTimeout):
		return errors.New("did not end in time")
	}
}

// start opens a stream for a job; count < 0 sends none.
func start(session *yamux.Session, job byte, count int64) (*yamux.Stream, error) {
	stream, err := session.OpenStream()
	if err != nil {
		return nil, err
	}
	head := []byte{job}
	if count >= 0 {
		for shift := 56; shift >= 0; shift -= 8 {
			head = append(head, byte(count>>shift))
		}
	}
	_, err = stream.Write(head)
	return stream, err
}

// echo writes count bytes of a pattern and expects them back, and EOF after them.
func echo(session *yamux.Session, count int64) error {
	stream, err := start(session, jobEcho, -1)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(stream, newPattern(uint64(count)), count)
		_ = stream.Close() // FIN; reading goes on
		sent <- err
	}()
	// The other end closes when it has seen our FIN and echoed everything: within the time that
	// config() gives, because we read as fast as it comes.
	err = expectPattern(stream, count)
	return errors.Join(err, <-sent)
}

func expectPattern(r io.Reader, count int64) error {
	want := newPattern(uint64(count))
	got, expected := make([]byte, 1<<16), make([]byte, 1<<16)
	var total int64
	for {
		n, err := r.Read(got)
		_, _ = want.Read(expected[:n])
		if !bytes.Equal(got[:n], expected[:n]) {
			return fmt.Errorf("wrong byte between %d and %d", total, total+int64(n))
		}
		total += int64(n)
		if err == io.EOF && total == count {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w after %d of %d bytes", err, total, count)
		}
	}
}

func manyStreams(session *yamux.Session) error {
	const count = 200
	results := make(chan error, count)
	streams := make([]*yamux.Stream, count)
	for i := range streams {
		stream, err := start(session, jobEcho, -1)
		if err != nil {
			return fmt.Errorf("stream %d: %w", i, err)
		}
		streams[i] = stream
	}
	for i, stream := range streams {
		go func(size int64, stream *yamux.Stream) {
			_, err := io.CopyN(stream, newPattern(uint64(size)), size)
			_ = stream.Close()
			results <- errors.Join(err, expectPattern(stream, size))
		}(int64(1000*i), stream)
	}
	var err error
	for range streams {
		err = errors.Join(err, <-results)
	}
	return err
}

func upload(session *yamux.Session) error {
	stream, err := start(session, jobSink, bulkBytes)
	if err != nil {
		return err
	}
	sum := sha256.New()
	both := io.MultiWriter(stream, sum)
	if _, err = io.CopyN(both, newPattern(bulkBytes), bulkBytes); err != nil {
		return err
	}
	answer, err := io.ReadAll(stream)
	if want := sum.Sum(nil); err != nil || !bytes.Equal(answer, want) {
		return fmt.Errorf("checksum %x, want %x (%v)", answer, want, err)
	}
	return stream.Close()
}

func download(session *yamux.Session) error {
	stream, err := start(session, jobSource, bulkBytes)
	if err != nil {
		return err
	}
	defer stream.Close()
	return expectPattern(stream, bulkBytes)
}

func halfClose(session *yamux.Session) error {
	stream, err := start(session, jobCount, -1)
	if err != nil {
		return err
	}
	if _, err = io.CopyN(stream, newPattern(7), 100000); err != nil {
		return err
	}
	_ = stream.Close()
	answer, err := io.ReadAll(stream)
	if err != nil || string(answer) != "100000" {
		return fmt.Errorf("the backend counted %q (%v)", answer, err)
	}
	return nil
}

func askResets(session *yamux.Session) (int, error) {
	stream, err := start(session, jobResets, -1)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	answer, err := io.ReadAll(stream)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(answer))
}

// resetByUs closes a stream whose echo we do not read: the backend waits for credit, cannot close,
// and gets our RST when the close times out.
func resetByUs(session *yamux.Session) error {
	before, err := askResets(session)
	if err != nil {
		return err
	}
	stream, err := start(session, jobEcho, -1)
	if err != nil {
		return err
	}
	_ = stream.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = io.CopyN(stream, newPattern(9), 8<<20) // stops when the backend stops reading
	_ = stream.Close()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		after, err := askResets(session)
		if err != nil || after == before+1 {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("the backend never saw the reset")
}

func resetByBackend(session *yamux.Session) error {
	stream, err := start(session, jobAbort, -1)
	if err != nil {
		return err
	}
	defer stream.Close()
	if _, err = stream.Write(make([]byte, 16)); err != nil {
		return err
	}
	_ = stream.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err = io.ReadAll(stream); !errors.Is(err, yamux.ErrConnectionReset) {
		return fmt.Errorf("reading gave %v, not a reset", err)
	}
	return nil
}

func manyInARow(session *yamux.Session) error {
	for i := 0; i < 1000; i++ {
		if err := echo(session, 10); err != nil {
			return fmt.Errorf("stream %d: %w", i, err)
		}
	}
	return nil
}

func nothingLeft(session *yamux.Session) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if session.NumStreams() == 0 {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("%d streams are still open", session.NumStreams())
}
