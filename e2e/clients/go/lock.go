package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

// lock: four workers count together under one mutex while the leader goes away and comes back. Each write is fenced: it
// is made only while its worker owns the lock.
func lock(ctx context.Context, e *env) error {
	const workers, least = 4, 10
	mutexKey, counter := e.prefix+"mutex", e.prefix+"counter"
	var inside, total atomic.Int64
	var done <-chan struct{}
	begun := make(chan struct{})
	worker := func(number int) error {
		s, err := e.session(60)
		if err != nil {
			return err
		}
		defer s.Close()
		if number == 0 {
			done = e.disturbed()
			close(begun)
		}
		<-begun
		for turn := 0; turn < least || !isDone(done); turn++ {
			m := concurrency.NewMutex(s, mutexKey)
			// The same session has the same place in the queue, however often it asks.
			if err := again(ctx, m.Lock); err != nil {
				return fmt.Errorf("locking: %w", err)
			}
			if inside.Add(1) != 1 {
				return errors.New("two workers hold the lock")
			}
			mark := fmt.Sprintf("/%d/%d", number, turn)
			err := again(ctx, func(ctx context.Context) error { return increment(ctx, s.Client(), m, counter, mark) })
			if err != nil {
				return fmt.Errorf("counting: %w", err)
			}
			total.Add(1)
			inside.Add(-1)
			if err := again(ctx, m.Unlock); err != nil {
				return fmt.Errorf("unlocking: %w", err)
			}
		}
		return nil
	}
	if err := together(workers, worker); err != nil {
		return err
	}
	got, err := e.client.Get(ctx, counter)
	if err != nil {
		return err
	}
	count, _, _ := strings.Cut(string(got.Kvs[0].Value), "/")
	e.say("%d workers counted to %s, one at a time", workers, count)
	if err := want("the counter", count, strconv.FormatInt(total.Load(), 10)); err != nil {
		return err
	}
	return tryLock(ctx, e)
}

// increment makes the counter one more, and leaves it alone if an earlier try that seemed to fail has done so.
func increment(ctx context.Context, c *clientv3.Client, m *concurrency.Mutex, key, mark string) error {
	got, err := c.Get(ctx, key)
	if err != nil {
		return err
	}
	count := 0
	if len(got.Kvs) > 0 {
		number, last, _ := strings.Cut(string(got.Kvs[0].Value), "/")
		if "/"+last == mark {
			return nil
		}
		if count, err = strconv.Atoi(number); err != nil {
			return err
		}
	}
	made, err := c.Txn(ctx).If(m.IsOwner()).Then(clientv3.OpPut(key, strconv.Itoa(count+1)+mark)).Commit()
	if err != nil {
		return err
	}
	if !made.Succeeded {
		return errors.New("the lock was lost")
	}
	return nil
}

// tryLock: who does not want to wait is told; a lock goes with its session.
func tryLock(ctx context.Context, e *env) error {
	first, err := e.session(60)
	if err != nil {
		return err
	}
	second, err := e.session(60)
	if err != nil {
		return err
	}
	defer second.Close()
	mine, other := concurrency.NewMutex(first, e.prefix+"try"), concurrency.NewMutex(second, e.prefix+"try")
	if err := mine.TryLock(ctx); err != nil {
		return err
	}
	if err := other.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		return fmt.Errorf("a second owner is told %v", err)
	}
	if err := first.Close(); err != nil {
		return err
	}
	if err := other.Lock(ctx); err != nil {
		return fmt.Errorf("after the owner's session: %w", err)
	}
	e.say("a held lock is refused at once, and free when its session ends")
	return other.Unlock(ctx)
}

// rwlock: readers share, a writer is alone.
func rwlock(ctx context.Context, e *env) error {
	var readers, writers, most atomic.Int64
	err := together(6, func(number int) error {
		s, err := e.session(60)
		if err != nil {
			return err
		}
		defer s.Close()
		m := recipe.NewRWMutex(s, e.prefix+"rw")
		for range 5 {
			if number == 0 {
				if err := m.Lock(); err != nil {
					return err
				}
				if writers.Add(1) != 1 || readers.Load() != 0 {
					return errors.New("the writer is not alone")
				}
				writers.Add(-1)
				if err := m.Unlock(); err != nil {
					return err
				}
				continue
			}
			if err := m.RLock(); err != nil {
				return err
			}
			if at := readers.Add(1); at > most.Load() {
				most.Store(at)
			}
			if writers.Load() != 0 {
				return errors.New("a reader is in with the writer")
			}
			readers.Add(-1)
			if err := m.RUnlock(); err != nil {
				return err
			}
		}
		return nil
	})
	e.say("one writer was alone each time; up to %d readers shared", most.Load())
	return err
}
