package main

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	messageBytes = 64
	writeBytes   = 65536
)

// The first byte of a stream is that of tests/bench/lib.h.
func answer(stream *yamux.Stream) {
	defer stream.Close()
	var job [1]byte
	if _, err := io.ReadFull(stream, job[:]); err != nil {
		return
	}
	if job[0] == 'E' {
		buf := make([]byte, 4096)
		for {
			n, err := stream.Read(buf)
			if err != nil {
				return
			}
			if _, err = stream.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	buf := make([]byte, writeBytes)
	var total uint64
	for {
		n, err := stream.Read(buf)
		total += uint64(n)
		if err != nil {
			break
		}
	}
	var reply [8]byte
	binary.BigEndian.PutUint64(reply[:], total)
	_, _ = stream.Write(reply[:])
}

func libServerMain(address string) {
	conn, err := net.Dial("tcp", address)
	check(err)
	session, err := yamux.Server(conn, config())
	check(err)
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go answer(stream)
	}
}

// run is one measurement; what happens before start does not count.
type run struct {
	session    *yamux.Session
	start, end time.Time
	mu         sync.Mutex
	done, all  uint64
	times      []time.Duration
}

func (r *run) merge(done, all uint64, times []time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done += done
	r.all += all
	r.times = append(r.times, times...)
}

func (r *run) open(first string) *yamux.Stream {
	stream, err := r.session.OpenStream()
	check(err)
	_, err = stream.Write([]byte(first))
	check(err)
	return stream
}

func (r *run) bulk(stream *yamux.Stream) {
	buf := make([]byte, writeBytes)
	var done, all uint64
	for now := time.Now(); now.Before(r.end); now = time.Now() {
		_, err := stream.Write(buf)
		check(err)
		all += writeBytes
		if !now.Before(r.start) {
			done += writeBytes
		}
	}
	check(stream.Close()) // FIN; reading goes on
	var reply [8]byte
	_, err := io.ReadFull(stream, reply[:])
	check(err)
	if binary.BigEndian.Uint64(reply[:]) != all {
		check(fmt.Errorf("bytes are missing"))
	}
	r.merge(done, all, nil)
}

// repeat runs one until the end and takes the time of each.
func (r *run) repeat(one func()) {
	var done, all uint64
	var times []time.Duration
	for then := time.Now(); then.Before(r.end); {
		one()
		now := time.Now()
		all++
		if !then.Before(r.start) && !now.After(r.end) {
			done++
			times = append(times, now.Sub(then))
		}
		then = now
	}
	r.merge(done, all, times)
}

func (r *run) ping(stream *yamux.Stream) {
	message := make([]byte, messageBytes)
	r.repeat(func() {
		_, err := stream.Write(message)
		check(err)
		_, err = io.ReadFull(stream, message)
		check(err)
	})
}

func (r *run) touch() {
	back := make([]byte, 1)
	r.repeat(func() {
		stream := r.open("E-")
		_, err := io.ReadFull(stream, back)
		check(err)
		_ = stream.Close()
	})
}

// processorTime is that of this process and the other; the kernel tells the other's in 10 ms.
func processorTime(pid int) time.Duration {
	var own syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &own))
	total := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if fields := strings.Fields(string(stat)); err == nil && len(fields) > 14 {
		for _, field := range fields[13:15] {
			ticks, _ := strconv.Atoi(field)
			total += time.Duration(ticks) * 10 * time.Millisecond
		}
	}
	return total
}

func quantile(times []time.Duration, q float64) float64 {
	if len(times) == 0 {
		return 0
	}
	return float64(times[int(float64(len(times)-1)*q)].Nanoseconds()) / 1e3
}

var jobs = map[string]struct {
	kind    string
	streams int
}{
	"bulk1": {"bulk", 1}, "bulk16": {"bulk", 16}, "ping1": {"ping", 1}, "ping1000": {"ping", 1000},
	"open1": {"open", 1}, "open64": {"open", 64},
}

func libMain(args []string) {
	flags := flag.NewFlagSet("lib", flag.ExitOnError)
	seconds := flags.Float64("t", 1, "seconds of the measurement")
	_ = flags.Parse(args)
	job, known := jobs[flags.Arg(0)]
	if !known {
		check(fmt.Errorf("no job %q", flags.Arg(0)))
	}
	session, server := startServer()
	r := &run{session: session}
	work := r.prepare(job.kind, job.streams)
	length := time.Duration(*seconds * 1e9)
	r.start = time.Now().Add(max(length/5, 100*time.Millisecond))
	r.end = r.start.Add(length)
	cpu := -processorTime(server.Pid)
	var group sync.WaitGroup
	for _, one := range work {
		group.Add(1)
		go func(one func()) {
			defer group.Done()
			one()
		}(one)
	}
	group.Wait()
	took, unit := length, 1.0
	if job.kind == "bulk" {
		took, unit = time.Since(r.start), 1e6
	}
	cpu += processorTime(server.Pid)
	sort.Slice(r.times, func(i, k int) bool { return r.times[i] < r.times[k] })
	fmt.Printf("%s way=yamux rate=%.2f p50_us=%.2f p99_us=%.2f cpu_us=%.3f all=%.3f\n",
		flags.Arg(0), float64(r.done)/unit/took.Seconds(), quantile(r.times, 0.5),
		quantile(r.times, 0.99), float64(cpu.Nanoseconds())/1e3/(float64(r.all)/unit),
		float64(r.all)/unit)
	_ = session.Close()
	_ = server.Kill()
	_, _ = server.Wait()
}

// startServer runs the answering half in a process of its own and connects to it.
func startServer() (*yamux.Session, *os.Process) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	server := exec.Command(os.Args[0], "lib-server", listener.Addr().String())
	server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	server.Stderr = os.Stderr
	check(server.Start())
	conn, err := listener.Accept()
	check(err)
	session, err := yamux.Client(conn, config())
	check(err)
	return session, server.Process
}

// prepare opens the streams that a job has from its beginning; what it returns runs at one time.
func (r *run) prepare(kind string, count int) []func() {
	var work []func()
	for i := 0; i < count; i++ {
		switch kind {
		case "bulk":
			stream := r.open("S")
			work = append(work, func() { r.bulk(stream) })
		case "ping":
			stream := r.open("E")
			work = append(work, func() { r.ping(stream) })
		default:
			work = append(work, r.touch)
		}
	}
	return work
}
