package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// kv: puts, ranges with their options, nested transactions, history and its end, and errors that the client knows.
func kv(ctx context.Context, e *env) error {
	return errors.Join(ranges(ctx, e), transactions(ctx, e), history(ctx, e), refusals(ctx, e))
}

func ranges(ctx context.Context, e *env) error {
	c, p := e.client, e.prefix+"r/"
	for _, pair := range []string{"a=3", "b=1", "c=2", "d=4", "b=5"} {
		key, value, _ := strings.Cut(pair, "=")
		if _, err := c.Put(ctx, p+key, value); err != nil {
			return err
		}
	}
	all := clientv3.WithPrefix()
	for _, one := range []struct {
		what    string
		options []clientv3.OpOption
		wanted  string
	}{
		{"all", []clientv3.OpOption{all}, "a=3 b=5 c=2 d=4 of 4"},
		{"downwards", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "d=4 c=2 b=5 a=3 of 4"},
		{"by value", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}, "c=2 a=3 d=4 b=5 of 4"},
		{"by version", []clientv3.OpOption{all, clientv3.WithSort(clientv3.SortByVersion, clientv3.SortDescend), clientv3.WithLimit(1)}, "b=5 of 4 more"},
		{"limited", []clientv3.OpOption{all, clientv3.WithLimit(2)}, "a=3 b=5 of 4 more"},
		{"counted", []clientv3.OpOption{all, clientv3.WithCountOnly()}, "of 4"},
		{"keys", []clientv3.OpOption{all, clientv3.WithKeysOnly(), clientv3.WithLimit(1)}, "a= of 4 more"},
		{"part", []clientv3.OpOption{clientv3.WithRange(p + "c")}, "a=3 b=5 of 2"},
		{"first made", clientv3.WithFirstCreate(), "a=3 of 4 more"},
		{"last changed", clientv3.WithLastRev(), "b=5 of 4 more"},
	} {
		got, err := c.Get(ctx, p+map[bool]string{true: "a"}[one.what == "part"], one.options...)
		if err != nil {
			return fmt.Errorf("%s: %w", one.what, err)
		}
		var text []string
		for _, kv := range got.Kvs {
			text = append(text, strings.TrimPrefix(string(kv.Key), p)+"="+string(kv.Value))
		}
		text = append(text, fmt.Sprint("of ", got.Count))
		if got.More {
			text = append(text, "more")
		}
		if err := want(one.what, strings.Join(text, " "), one.wanted); err != nil {
			return err
		}
	}
	stream, err := c.GetStream(ctx, p, all)
	if err != nil {
		return err
	}
	whole, err := clientv3.GetStreamToGetResponse(stream)
	if err != nil {
		return err
	}
	return want("keys streamed", len(whole.Kvs), 4)
}

func transactions(ctx context.Context, e *env) error {
	c, p := e.client, e.prefix+"t/"
	inner := clientv3.OpTxn(
		[]clientv3.Cmp{clientv3.Compare(clientv3.Version(p+"new"), "=", 0)},
		[]clientv3.Op{clientv3.OpPut(p+"new", "1"), clientv3.OpGet(p + "old")},
		[]clientv3.Op{clientv3.OpDelete(p + "new")})
	for turn, wanted := range []struct {
		inner bool
		count int64
	}{{true, 1}, {false, 0}} {
		got, err := c.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(p).WithPrefix(), ">", 0)).
			Then(inner, clientv3.OpPut(p+"old", fmt.Sprint(turn))).
			Else(clientv3.OpPut(p+"old", "first"), inner).
			Commit()
		if err != nil {
			return err
		}
		at := 0
		if !got.Succeeded {
			at = 1
		}
		if nested := got.Responses[at].GetResponseTxn(); nested.Succeeded != wanted.inner {
			return fmt.Errorf("turn %d: %+v", turn, got)
		}
		if err := waitForCount(ctx, c, p+"new", int(wanted.count)); err != nil {
			return err
		}
	}
	_, err := c.Txn(ctx).Then(clientv3.OpPut(p+"x", "1"), clientv3.OpPut(p+"x", "2")).Commit()
	if !errors.Is(err, rpctypes.ErrDuplicateKey) {
		return fmt.Errorf("one key put twice: %w", err)
	}
	return nil
}

func history(ctx context.Context, e *env) error {
	c, key := e.client, e.prefix+"history"
	first, err := c.Put(ctx, key, "first")
	if err != nil {
		return err
	}
	second, err := c.Put(ctx, key, "second", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	old, err := c.Get(ctx, key, clientv3.WithRev(first.Header.Revision))
	if err != nil {
		return err
	}
	if err := errors.Join(want("the previous value", string(second.PrevKv.Value), "first"), want("the old value", string(old.Kvs[0].Value), "first")); err != nil {
		return err
	}
	if _, err := c.Compact(ctx, second.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	if _, err := c.Get(ctx, key, clientv3.WithRev(first.Header.Revision)); !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("reading what is compacted: %w", err)
	}
	if _, err := c.Compact(ctx, second.Header.Revision); !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("compacting twice: %w", err)
	}
	gone, err := c.Delete(ctx, key, clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	e.say("old revisions are read until they are compacted")
	return want("the deleted value", string(gone.PrevKvs[0].Value), "second")
}

// refusals: the client knows each error by its text.
func refusals(ctx context.Context, e *env) error {
	c := e.client
	_, empty := c.Put(ctx, "", "v")
	_, future := c.Get(ctx, e.prefix, clientv3.WithRev(1<<60))
	_, noLease := c.Put(ctx, e.prefix+"k", "v", clientv3.WithLease(4711))
	_, large := c.Put(ctx, e.prefix+"k", strings.Repeat("x", 1600*1024))
	_, ignored := c.Put(ctx, e.prefix+"none", "", clientv3.WithIgnoreValue())
	var many []clientv3.Op
	for number := range 129 {
		many = append(many, clientv3.OpPut(fmt.Sprint(e.prefix, number), "v"))
	}
	_, tooMany := c.Txn(ctx).Then(many...).Commit()
	for _, one := range []struct{ got, wanted error }{
		{empty, rpctypes.ErrEmptyKey}, {future, rpctypes.ErrFutureRev}, {noLease, rpctypes.ErrLeaseNotFound},
		{large, rpctypes.ErrRequestTooLarge}, {ignored, rpctypes.ErrKeyNotFound}, {tooMany, rpctypes.ErrTooManyOps},
	} {
		if !errors.Is(one.got, one.wanted) {
			return fmt.Errorf("got %q, wanted %q", one.got, one.wanted)
		}
	}
	e.say("refusals are errors that the client knows")
	return nil
}
