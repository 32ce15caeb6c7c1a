package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// config: a program reads its settings, then is told of each change; a bad one is taken back to what was before.
func config(ctx context.Context, e *env) error {
	key := e.prefix + "app"
	type settings struct{ Workers int }
	good, err := e.client.Put(ctx, key, `{"Workers":1}`)
	if err != nil {
		return err
	}
	var ready, back atomic.Int64
	applied := make(chan int, 100)
	result := make(chan error, 1)
	go func() {
		result <- together(3, func(number int) error {
			c, err := e.at(number)
			if err != nil {
				return err
			}
			now, err := c.Get(ctx, key)
			if err != nil {
				return err
			}
			ready.Add(1)
			for change := range c.Watch(ctx, key, clientv3.WithRev(now.Header.Revision+1)) {
				for _, event := range change.Events {
					var s settings
					if err := json.Unmarshal(event.Kv.Value, &s); err != nil {
						return err
					}
					applied <- s.Workers
					if s.Workers == 1 {
						back.Add(1)
						return nil
					}
				}
			}
			return ctx.Err()
		})
	}()
	// Everybody has read the first settings before they change.
	if err := again(ctx, func(context.Context) error { return want("programs that run", ready.Load(), 3) }); err != nil {
		return err
	}
	if _, err := e.client.Put(ctx, key, `{"Workers":999}`); err != nil {
		return err
	}
	for range 3 {
		if err := want("what is applied", <-applied, 999); err != nil {
			return err
		}
	}
	old, err := e.client.Get(ctx, key, clientv3.WithRev(good.Header.Revision))
	if err != nil {
		return err
	}
	if _, err := e.client.Put(ctx, key, string(old.Kvs[0].Value)); err != nil {
		return err
	}
	if err := <-result; err != nil {
		return err
	}
	e.say("three programs took a new setting, and the old one again")
	return want("programs that are back", back.Load(), 3)
}

// pubsub: what is published under a topic reaches each subscriber in order, also one who comes late and asks from where
// it left off.
func pubsub(ctx context.Context, e *env) error {
	const messages = 100
	topic := e.prefix + "topic/"
	subscribe := func(number int, from int64) (clientv3.WatchChan, error) {
		c, err := e.at(number)
		if err != nil {
			return nil, err
		}
		options := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCreatedNotify(), clientv3.WithFilterDelete(), clientv3.WithRev(from)}
		w := c.Watch(ctx, topic, options...)
		if first := <-w; !first.Created {
			return nil, fmt.Errorf("not told that it was created: %+v", first)
		}
		return w, nil
	}
	receive := func(w clientv3.WatchChan) error {
		next := 0
		for got := range w {
			for _, event := range got.Events {
				if err := want("the message", string(event.Kv.Value), fmt.Sprint(next)); err != nil {
					return err
				}
				if next++; next == messages {
					return nil
				}
			}
		}
		return fmt.Errorf("cut off at message %d: %w", next, ctx.Err())
	}
	var subscribers []clientv3.WatchChan
	for number := range 3 {
		w, err := subscribe(number, 0)
		if err != nil {
			return err
		}
		subscribers = append(subscribers, w)
	}
	var first int64
	for number := range messages {
		put, err := e.client.Put(ctx, fmt.Sprint(topic, number), fmt.Sprint(number))
		if err != nil {
			return err
		}
		if number == 0 {
			first = put.Header.Revision
		}
	}
	late, err := subscribe(3, first)
	if err != nil {
		return err
	}
	subscribers = append(subscribers, late)
	if err := together(len(subscribers), func(number int) error { return receive(subscribers[number]) }); err != nil {
		return err
	}
	e.say("%d subscribers, one of them late, got %d messages in order", len(subscribers), messages)
	return nil
}

// flags: two people switch features at once without undoing each other's work, and a program knows at once.
func flags(ctx context.Context, e *env) error {
	key := e.prefix + "features"
	change := func(c *clientv3.Client, name string) error {
		for {
			got, err := c.Get(ctx, key)
			if err != nil {
				return err
			}
			features, revision := map[string]bool{}, int64(0)
			if len(got.Kvs) > 0 {
				revision = got.Kvs[0].ModRevision
				if err := json.Unmarshal(got.Kvs[0].Value, &features); err != nil {
					return err
				}
			}
			features[name] = true
			text, err := json.Marshal(features)
			if err != nil {
				return err
			}
			made, err := c.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision)).
				Then(clientv3.OpPut(key, string(text))).Commit()
			if err != nil {
				return err
			}
			if made.Succeeded {
				return nil
			}
		}
	}
	w := e.client.Watch(ctx, key, clientv3.WithCreatedNotify())
	if first := <-w; !first.Created {
		return fmt.Errorf("not told that it was created: %+v", first)
	}
	err := together(4, func(number int) error {
		c, err := e.at(number)
		if err != nil {
			return err
		}
		for turn := range 5 {
			if err := change(c, fmt.Sprint("feature-", number, "-", turn)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for seen := 1; ; seen++ {
		got, open := <-w
		if !open || got.Err() != nil {
			return errors.Join(errors.New("the program was cut off"), got.Err())
		}
		features := map[string]bool{}
		if err := json.Unmarshal(got.Events[len(got.Events)-1].Kv.Value, &features); err != nil {
			return err
		}
		if len(features) == 20 {
			e.say("20 features on, switched by four people at once")
			return nil
		}
	}
}
