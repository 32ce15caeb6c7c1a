// go-clients is what people do with an etcd cluster through etcd's own Go client, one small program each:
//
//	go-clients -endpoints 127.0.0.1:2379,127.0.0.1:22379 lock
//
// A program prints what it shows and ends with 0, or says what is wrong and ends with 1. With -disturb it asks, where it
// matters, for the leader to be restarted by a line `disturb` on standard output, goes on with its work meanwhile, and
// takes a line on standard input as the sign that it was done.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// Longest run of one program. A healthy one takes seconds; two busy cores are slow.
const patience = 100 * time.Second

// What each program is called and does.
var programs = map[string]func(context.Context, *env) error{
	"auth":           auth,
	"balance":        balance,
	"barrier":        barrier,
	"config":         config,
	"discovery":      discovery,
	"election":       election,
	"flags":          flags,
	"kubernetes":     kube,
	"kv":             kv,
	"lease":          lease,
	"leasing":        leases,
	"lock":           lock,
	"mirror":         mirrored,
	"namespace":      namespaced,
	"ordering":       ordered,
	"pubsub":         pubsub,
	"queue":          queue,
	"rwlock":         rwlock,
	"stm":            stm,
	"double-barrier": doubleBarrier,
	"upkeep":         upkeep,
	"watch":          watch,
}

// env is what a program works with.
type env struct {
	endpoints []string
	// A client of all endpoints.
	client *clientv3.Client
	// Where the program's keys are; ends with a slash.
	prefix  string
	disturb bool
	clients []*clientv3.Client
}

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "client addresses, separated by commas")
	disturb := flag.Bool("disturb", false, "ask for the leader to be restarted")
	flag.Parse()
	run, known := programs[flag.Arg(0)]
	if !known {
		var names []string
		for name := range programs {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: go-clients [-endpoints LIST] [-disturb] PROGRAM; there are: %s\n", strings.Join(names, " "))
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	e := &env{endpoints: strings.Split(*endpoints, ","), prefix: flag.Arg(0) + "/", disturb: *disturb}
	if err := e.run(ctx, run); err != nil {
		fmt.Printf("FAILED %s: %v\n", flag.Arg(0), err)
		os.Exit(1)
	}
	fmt.Println("ok")
}

func (e *env) run(ctx context.Context, program func(context.Context, *env) error) error {
	var err error
	if e.client, err = e.connect(e.endpoints...); err != nil {
		return err
	}
	defer func() {
		for _, c := range e.clients {
			c.Close()
		}
	}()
	if _, err = e.client.Delete(ctx, e.prefix, clientv3.WithPrefix()); err != nil {
		return err
	}
	return program(ctx, e)
}

// connect makes a client that ends with the program.
func (e *env) connect(endpoints ...string) (*clientv3.Client, error) {
	return e.connectAs("", "", endpoints...)
}

func (e *env) connectAs(user, password string, endpoints ...string) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   endpoints,
		Username:    user,
		Password:    password,
		DialTimeout: 20 * time.Second,
		Logger:      zap.NewNop(),
		DialOptions: []grpc.DialOption{grpc.WithBlock()}, //nolint:staticcheck // a dead member is an error here, not later
	})
	if err == nil {
		e.clients = append(e.clients, c)
	}
	return c, err
}

// at is a client of one member only, counted around.
func (e *env) at(number int) (*clientv3.Client, error) {
	return e.connect(e.endpoints[number%len(e.endpoints)])
}

// session is a session of `seconds` through a client of its own that knows all members.
func (e *env) session(seconds int) (*concurrency.Session, error) {
	c, err := e.connect(e.endpoints...)
	if err != nil {
		return nil, err
	}
	return concurrency.NewSession(c, concurrency.WithTTL(seconds))
}

func (e *env) say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

// disturbed asks for the leader's restart, and closes what it returns when that was done (at once without -disturb).
func (e *env) disturbed() <-chan struct{} {
	done := make(chan struct{})
	if !e.disturb {
		close(done)
		return done
	}
	e.say("disturb")
	go func() {
		if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
			fmt.Fprintln(os.Stderr, "nobody said that the leader was restarted:", err)
			return
		}
		close(done)
	}()
	return done
}

// again repeats what may be repeated until it works. A client cannot know whether a write that failed because the
// leader went away was made, so it does not repeat it by itself.
func again(ctx context.Context, try func(context.Context) error) error {
	for {
		// Short enough that a request that a dead member will never answer is made anew elsewhere.
		once, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(once)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// isDone tells whether a channel is closed.
func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// together runs `count` of them at once and returns what went wrong.
func together(count int, run func(number int) error) error {
	results := make(chan error, count)
	for number := range count {
		go func() { results <- run(number) }()
	}
	var wrong error
	for range count {
		wrong = errors.Join(wrong, <-results)
	}
	return wrong
}

// want is an error unless both are equal.
func want[T comparable](what string, got, wanted T) error {
	if got != wanted {
		return fmt.Errorf("%s: got %v, wanted %v", what, got, wanted)
	}
	return nil
}
