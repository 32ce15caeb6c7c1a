package main

import (
	"context"
	"errors"
	"fmt"
	"maps"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

// leases: two clients that cache what they own by a lease. One's write takes the key from the other's cache.
func leases(ctx context.Context, e *env) error {
	var views [2]clientv3.KV
	for number := range views {
		c, err := e.connect(e.endpoints...)
		if err != nil {
			return err
		}
		view, end, err := leasing.NewKV(c, e.prefix+"owners/")
		if err != nil {
			return err
		}
		defer end()
		views[number] = view
	}
	key := e.prefix + "key"
	for turn := range 20 {
		value := fmt.Sprint(turn)
		if _, err := views[turn%2].Put(ctx, key, value); err != nil {
			return err
		}
		for number, view := range views {
			got, err := view.Get(ctx, key)
			if err != nil {
				return err
			}
			if err := want(fmt.Sprint("what client ", number, " reads"), string(got.Kvs[0].Value), value); err != nil {
				return err
			}
		}
	}
	// Whoever read it first owns it and answers from memory: what is written past the lease is not seen.
	key = e.prefix + "owned"
	if _, err := e.client.Put(ctx, key, "cached"); err != nil {
		return err
	}
	own := views[1]
	if _, err := own.Get(ctx, key); err != nil {
		return err
	}
	if _, err := e.client.Put(ctx, key, "past the lease"); err != nil {
		return err
	}
	got, err := own.Get(ctx, key)
	if err != nil {
		return err
	}
	if err := want("the cached value", string(got.Kvs[0].Value), "cached"); err != nil {
		return err
	}
	made, err := views[0].Txn(ctx).If(clientv3.Compare(clientv3.Version(key), ">", 0)).
		Then(clientv3.OpPut(key, "by a transaction"), clientv3.OpGet(key)).Commit()
	if err != nil {
		return err
	}
	if err := want("whether the transaction succeeded", made.Succeeded, true); err != nil {
		return err
	}
	if got, err = own.Get(ctx, key); err != nil {
		return err
	}
	e.say("cached reads, and none of them older than the last write")
	return want("what is read after it", string(got.Kvs[0].Value), "by a transaction")
}

// namespaced: an application that sees its own part of the keys only, without knowing.
func namespaced(ctx context.Context, e *env) error {
	c, err := e.connect(e.endpoints...)
	if err != nil {
		return err
	}
	c.KV, c.Watcher = namespace.NewKV(c.KV, e.prefix), namespace.NewWatcher(c.Watcher, e.prefix)
	c.Lease = namespace.NewLease(c.Lease, e.prefix)
	w := c.Watch(ctx, "k", clientv3.WithCreatedNotify())
	if first := <-w; !first.Created {
		return fmt.Errorf("not told that it was created: %+v", first)
	}
	grant, err := c.Grant(ctx, 60)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, "k", "v", clientv3.WithLease(grant.ID)); err != nil {
		return err
	}
	event := (<-w).Events[0]
	inside, err := c.Get(ctx, "", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	outside, err := e.client.Get(ctx, e.prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	left, err := c.TimeToLive(ctx, grant.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if _, err := c.Revoke(ctx, grant.ID); err != nil {
		return err
	}
	return errors.Join(
		want("the event's key", string(event.Kv.Key), "k"),
		want("keys inside", len(inside.Kvs), 1),
		want("the key inside", string(inside.Kvs[0].Key), "k"),
		want("the key outside", string(outside.Kvs[0].Key), e.prefix+"k"),
		want("the lease's key", string(left.Keys[0]), "k"))
}

// ordered: reads of whichever member answers never go back in time.
func ordered(ctx context.Context, e *env) error {
	c, err := e.connect(e.endpoints...)
	if err != nil {
		return err
	}
	view := ordering.NewKV(c.KV, ordering.NewOrderViolationSwitchEndpointClosure(c))
	var last int64
	for turn := range 30 {
		if _, err := e.client.Put(ctx, e.prefix+"k", fmt.Sprint(turn)); err != nil {
			return err
		}
		c.SetEndpoints(e.endpoints[turn%len(e.endpoints)])
		var got *clientv3.GetResponse
		err := again(ctx, func(ctx context.Context) error {
			got, err = view.Get(ctx, e.prefix+"k", clientv3.WithSerializable())
			return err
		})
		if err != nil {
			return err
		}
		if got.Header.Revision < last {
			return fmt.Errorf("revision %d was read after %d", got.Header.Revision, last)
		}
		last = got.Header.Revision
	}
	return nil
}

// mirrored: a copy of what is there, in pages, and then of each change.
func mirrored(ctx context.Context, e *env) error {
	const keys = 1200 // More than a page of the syncer, which is 1000.
	for from := 0; from < keys; from += 100 {
		var puts []clientv3.Op
		for number := from; number < from+100; number++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s%05d", e.prefix, number), fmt.Sprint(number)))
		}
		if _, err := e.client.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	copied := map[string]string{}
	syncer := mirror.NewSyncer(e.client, e.prefix, 0)
	pages, wrong := syncer.SyncBase(ctx)
	for page := range pages {
		for _, kv := range page.Kvs {
			copied[string(kv.Key)] = string(kv.Value)
		}
	}
	if err := <-wrong; err != nil {
		return err
	}
	if err := want("keys in the base", len(copied), keys); err != nil {
		return err
	}
	updates := syncer.SyncUpdates(ctx)
	if _, err := e.client.Delete(ctx, e.prefix, clientv3.WithRange(fmt.Sprintf("%s%05d", e.prefix, 1000))); err != nil {
		return err
	}
	last, err := e.client.Put(ctx, e.prefix+"last", "x")
	if err != nil {
		return err
	}
	for update := range updates {
		if err := update.Err(); err != nil {
			return err
		}
		for _, event := range update.Events {
			if event.Type == clientv3.EventTypeDelete {
				delete(copied, string(event.Kv.Key))
			} else {
				copied[string(event.Kv.Key)] = string(event.Kv.Value)
			}
		}
		if update.Header.Revision >= last.Header.Revision {
			break
		}
	}
	now, err := e.client.Get(ctx, e.prefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	there := map[string]string{}
	for _, kv := range now.Kvs {
		there[string(kv.Key)] = string(kv.Value)
	}
	if !maps.Equal(copied, there) {
		return fmt.Errorf("the copy has %d keys, the cluster %d", len(copied), len(there))
	}
	e.say("a copy of %d keys, then of what changed", keys)
	return want("keys at the end", len(there), keys-1000+1)
}
