package main

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watch: a writer writes one key on and on while the leader goes away and comes back. Watchers at each member, and one
// that knows all of them, see each version once and in order.
func watch(ctx context.Context, e *env) error {
	const least = 200
	key := e.prefix + "key"
	var watchers []clientv3.WatchChan
	for number := range len(e.endpoints) + 1 {
		c := e.client
		if number < len(e.endpoints) {
			var err error
			if c, err = e.at(number); err != nil {
				return err
			}
		}
		w := c.Watch(ctx, key, clientv3.WithCreatedNotify(), clientv3.WithPrevKV(), clientv3.WithFragment())
		if first := <-w; !first.Created {
			return fmt.Errorf("watcher %d: not told that it was created: %+v", number, first)
		}
		watchers = append(watchers, w)
	}
	written := make(chan error, 1)
	var last int64 // The version that the end has; read after `written`.
	go func() {
		done := e.disturbed()
		for number := 0; number < least || !isDone(done); number++ {
			if err := again(ctx, func(ctx context.Context) error {
				_, err := e.client.Put(ctx, key, fmt.Sprint(number))
				return err
			}); err != nil {
				written <- err
				return
			}
		}
		// A put that was made twice has two versions, so only the store knows how many there are.
		_, err := e.client.Put(ctx, key, "end")
		written <- err
	}()
	err := together(len(watchers), func(number int) error {
		var version, revision int64
		before := ""
		for got := range watchers[number] {
			if err := got.Err(); err != nil {
				return fmt.Errorf("watcher %d after version %d: %w", number, version, err)
			}
			for _, event := range got.Events {
				if event.Kv.Version != version+1 || event.Kv.ModRevision <= revision {
					return fmt.Errorf("watcher %d: version %d came after %d", number, event.Kv.Version, version)
				}
				if version > 0 && string(event.PrevKv.GetValue()) != before {
					return fmt.Errorf("watcher %d: %q is not what was before", number, event.PrevKv.GetValue())
				}
				version, revision, before = event.Kv.Version, event.Kv.ModRevision, string(event.Kv.Value)
				if before == "end" {
					if number == 0 {
						last = version
					}
					return nil
				}
			}
		}
		return fmt.Errorf("watcher %d ended after version %d: %w", number, version, ctx.Err())
	})
	if err = errors.Join(err, <-written); err != nil {
		return err
	}
	e.say("%d watchers saw each of %d versions once and in order", len(watchers), last)
	return errors.Join(progress(ctx, e), filters(ctx, e), compacted(ctx, e))
}

// progress: a watcher to whom nothing happens learns up to where that holds.
func progress(ctx context.Context, e *env) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := e.client.Watch(ctx, e.prefix+"silent", clientv3.WithCreatedNotify())
	if first := <-w; !first.Created {
		return fmt.Errorf("not told that it was created: %+v", first)
	}
	put, err := e.client.Put(ctx, e.prefix+"elsewhere", "x")
	if err != nil {
		return err
	}
	// A watcher that is catching up gives no answer, so the request is repeated.
	asked := make(chan struct{})
	defer close(asked)
	go func() {
		_ = again(ctx, func(once context.Context) error {
			if isDone(asked) {
				return nil
			}
			if err := e.client.RequestProgress(ctx); err != nil {
				return nil
			}
			return errors.New("go on asking")
		})
	}()
	for got := range w {
		if got.IsProgressNotify() && got.Header.Revision >= put.Header.Revision {
			e.say("a silent watcher is told of revision %d", got.Header.Revision)
			return nil
		}
		if len(got.Events) > 0 {
			return fmt.Errorf("a silent watcher was told %v", got.Events)
		}
	}
	return ctx.Err()
}

// filters: one watcher of history hears only deletions, another only puts.
func filters(ctx context.Context, e *env) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := e.prefix + "filtered"
	first, err := e.client.Put(ctx, key, "v")
	if err != nil {
		return err
	}
	if _, err := e.client.Delete(ctx, key); err != nil {
		return err
	}
	for filter, deletes := range map[string]bool{"no puts": true, "no deletes": false} {
		option := clientv3.WithFilterPut()
		if !deletes {
			option = clientv3.WithFilterDelete()
		}
		got := <-e.client.Watch(ctx, key, option, clientv3.WithRev(first.Header.Revision))
		if len(got.Events) != 1 || (got.Events[0].Type == clientv3.EventTypeDelete) != deletes {
			return fmt.Errorf("%s: %+v", filter, got)
		}
	}
	return nil
}

// compacted: who asks for history that is gone is told from where it is there, and its channel ends.
func compacted(ctx context.Context, e *env) error {
	// One member for all: another may hear of the compaction a moment after it was answered.
	c, err := e.at(0)
	if err != nil {
		return err
	}
	put, err := c.Put(ctx, e.prefix+"compacted", "x")
	if err != nil {
		return err
	}
	if _, err := c.Compact(ctx, put.Header.Revision); err != nil {
		return err
	}
	w := c.Watch(ctx, e.prefix+"compacted", clientv3.WithRev(1))
	got := <-w
	if !errors.Is(got.Err(), rpctypes.ErrCompacted) || got.CompactRevision != put.Header.Revision {
		return fmt.Errorf("a watch of compacted history: %+v, %w", got, got.Err())
	}
	if _, open := <-w; open {
		return errors.New("a cancelled watch goes on")
	}
	e.say("a watch of compacted history is told of revision %d", got.CompactRevision)
	return nil
}
