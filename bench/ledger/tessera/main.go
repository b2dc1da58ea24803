// Appends entries to a Tessera POSIX log in this process, through its public API; what it took is printed as one JSON object.
//
// Batching is Tessera's default (256 entries or 250 ms). A writer waits until its entry is sequenced before it adds the next one. An entry counts as
// published once a signed checkpoint covers it.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	antispam "github.com/transparency-dev/tessera/storage/posix/antispam"
	"golang.org/x/mod/sumdb/note"
)

var (
	dir      = flag.String("dir", "", "an empty directory for the log")
	seconds  = flag.Float64("seconds", 10, "of load")
	warm     = flag.Float64("warm", 2, "seconds before that")
	writers  = flag.Int("writers", 2048, "at once")
	size     = flag.Int("size", 300, "bytes of an entry")
	rate     = flag.Float64("rate", 0, "entries a second over all writers; 0: as fast as they are taken")
	interval = flag.Duration("interval", 250*time.Millisecond, "between checkpoints")
	dedup    = flag.Bool("dedup", false, "with the persistent antispam")
)

type added struct {
	index            uint64
	begun, sequenced time.Duration
}

type published struct {
	size uint64
	at   time.Duration
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func cpu() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

func main() {
	flag.Parse()
	ctx := context.Background()
	private, _, err := note.GenerateKey(rand.Reader, "bench.invalid/tessera")
	if err != nil {
		log.Fatal(err)
	}
	options := tessera.NewAppendOptions().
		WithCheckpointSigner(must(note.NewSigner(private))).
		WithCheckpointInterval(*interval)
	if *dedup {
		store := must(antispam.NewAntispam(ctx, filepath.Join(*dir, ".state", "antispam"), antispam.AntispamOpts{}))
		options = options.WithAntispam(tessera.DefaultAntispamInMemorySize, store)
	}
	driver := must(posix.New(ctx, posix.Config{Path: *dir}))
	appender, shutdown, reader, err := tessera.NewAppender(ctx, driver, options)
	if err != nil {
		log.Fatal(err)
	}

	start := time.Now()
	begin, end := time.Duration(*warm*1e9), time.Duration((*warm+*seconds)*1e9)
	var checkpoints []published
	watched := make(chan struct{})
	var stop atomic.Bool
	go func() {
		defer close(watched)
		for !stop.Load() {
			time.Sleep(2 * time.Millisecond)
			text, err := reader.ReadCheckpoint(ctx)
			if err != nil {
				continue
			}
			covers := must(strconv.ParseUint(strings.Split(string(text), "\n")[1], 10, 64))
			if len(checkpoints) == 0 || covers > checkpoints[len(checkpoints)-1].size {
				checkpoints = append(checkpoints, published{covers, time.Since(start)})
			}
		}
	}()

	pad := strings.Repeat("x", *size)
	var next atomic.Int64
	var mutex sync.Mutex
	var all []added
	var refused atomic.Int64
	var group sync.WaitGroup
	for range *writers {
		group.Add(1)
		go func() {
			defer group.Done()
			var mine []added
			for {
				number := next.Add(1)
				begun := time.Since(start)
				if *rate > 0 {
					due := time.Duration(float64(number) / *rate * 1e9)
					time.Sleep(due - begun)
					begun = due
				}
				if begun >= end {
					break
				}
				text := fmt.Sprintf("%d ", number)
				index, err := appender.Add(ctx, tessera.NewEntry([]byte(text+pad[len(text):])))()
				if err != nil {
					refused.Add(1)
					time.Sleep(10 * time.Millisecond)
					continue
				}
				mine = append(mine, added{index.Index, begun, time.Since(start)})
			}
			mutex.Lock()
			all = append(all, mine...)
			mutex.Unlock()
		}()
	}
	time.Sleep(begin - time.Since(start))
	before := cpu()
	time.Sleep(end - time.Since(start))
	used := cpu() - before
	group.Wait()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if text, err := reader.ReadCheckpoint(ctx); err == nil && strings.HasPrefix(strings.SplitN(string(text), "\n", 2)[1], fmt.Sprintf("%d\n", len(all))) {
			break
		}
	}
	time.Sleep(20 * time.Millisecond)
	stop.Store(true)
	<-watched
	if err := shutdown(ctx); err != nil {
		log.Print(err)
	}

	var sequenced, integrated []float64
	for _, one := range all {
		if one.begun < begin || one.begun >= end {
			continue
		}
		sequenced = append(sequenced, (one.sequenced-one.begun).Seconds()*1e3)
		at := sort.Search(len(checkpoints), func(i int) bool { return checkpoints[i].size > one.index })
		if at == len(checkpoints) {
			log.Fatalf("entry %d was never published", one.index)
		}
		integrated = append(integrated, (checkpoints[at].at-one.begun).Seconds()*1e3)
	}
	within := sizeAt(checkpoints, end) - sizeAt(checkpoints, begin)
	if err := json.NewEncoder(os.Stdout).Encode(map[string]any{
		"entries":      len(all),
		"refused":      refused.Load(),
		"per_s":        within / *seconds,
		"cpu_us":       used / within * 1e6,
		"sequenced_ms": percentiles(sequenced),
		"published_ms": percentiles(integrated),
	}); err != nil {
		log.Fatal(err)
	}
}

// How many entries were published at a time, between two checkpoints in proportion.
func sizeAt(checkpoints []published, at time.Duration) float64 {
	place := sort.Search(len(checkpoints), func(i int) bool { return checkpoints[i].at > at })
	if place == 0 || place == len(checkpoints) {
		return float64(checkpoints[max(0, place-1)].size)
	}
	left, right := checkpoints[place-1], checkpoints[place]
	share := float64(at-left.at) / float64(right.at-left.at)
	return float64(left.size) + share*float64(right.size-left.size)
}

func percentiles(values []float64) map[string]float64 {
	slices.Sort(values)
	of := func(share float64) float64 { return values[min(len(values)-1, int(share*float64(len(values))))] }
	return map[string]float64{"p50": of(0.5), "p90": of(0.9), "p99": of(0.99), "max": values[len(values)-1]}
}
