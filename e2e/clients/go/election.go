package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// election: three candidates, of whom one leads; the leader of the cluster goes away while two wait. Whoever resigns or
// loses its session is followed by who waited longest, and an observer hears all of it.
func election(ctx context.Context, e *env) error {
	office := e.prefix + "office"
	names := []string{"ann", "bob", "cy"}
	sessions, elections, won := map[string]*concurrency.Session{}, map[string]*concurrency.Election{}, make(chan error, 3)
	for _, name := range names {
		s, err := e.session(60)
		if err != nil {
			return err
		}
		sessions[name], elections[name] = s, concurrency.NewElection(s, office)
	}
	heard := concurrency.NewElection(sessions["cy"], office).Observe(ctx)
	if err := elections["ann"].Campaign(ctx, "ann"); err != nil {
		return err
	}
	if err := hear(ctx, heard, "ann"); err != nil {
		return err
	}
	for place, name := range names[1:] {
		go func() { won <- elections[name].Campaign(ctx, name) }()
		// The next one stands in line behind.
		if err := waitForCount(ctx, e.client, office+"/", place+2); err != nil {
			return err
		}
	}
	done := e.disturbed()
	for turn := 0; !isDone(done) || turn == 0; turn++ {
		word := fmt.Sprint("ann says ", turn)
		if err := again(ctx, func(ctx context.Context) error { return elections["ann"].Proclaim(ctx, word) }); err != nil {
			return fmt.Errorf("proclaiming: %w", err)
		}
		if err := hear(ctx, heard, word); err != nil {
			return err
		}
	}
	leader, err := elections["bob"].Leader(ctx)
	if err != nil {
		return err
	}
	if err := want("the leader's lease", leader.Kvs[0].Lease, int64(sessions["ann"].Lease())); err != nil {
		return err
	}
	if len(won) != 0 {
		return errors.New("a second leader was elected")
	}
	if err := elections["ann"].Resign(ctx); err != nil {
		return err
	}
	if err := errors.Join(<-won, hear(ctx, heard, "bob")); err != nil {
		return err
	}
	e.say("bob follows ann, who resigned")
	if err := sessions["bob"].Close(); err != nil {
		return err
	}
	if err := errors.Join(<-won, hear(ctx, heard, "cy")); err != nil {
		return err
	}
	e.say("cy follows bob, whose session ended")
	if err := elections["bob"].Proclaim(ctx, "still me"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		return fmt.Errorf("a former leader proclaims: %v", err)
	}
	if err := elections["cy"].Resign(ctx); err != nil {
		return err
	}
	if _, err = elections["cy"].Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		return fmt.Errorf("nobody leads: %v", err)
	}
	return nil
}

// hear waits until the observer hears the word. Words between may be passed over: it hears the latest.
func hear(ctx context.Context, heard <-chan *clientv3.GetResponse, word string) error {
	last := "nothing"
	for {
		select {
		case said, open := <-heard:
			if !open {
				return fmt.Errorf("the observer was cut off before it heard %q", word)
			}
			if last = string(said.Kvs[0].Value); last == word {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("the observer heard %q, not %q", last, word)
		}
	}
}

// waitForCount waits until there are so many keys with the prefix.
func waitForCount(ctx context.Context, c *clientv3.Client, prefix string, count int) error {
	for {
		got, err := c.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return err
		}
		if got.Count == int64(count) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d keys under %s, wanted %d", got.Count, prefix, count)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
