package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"

	"go.etcd.io/etcd/client/v3/concurrency"
)

// stm: money moves between accounts by software transactions that get into each other's way; none is lost or made.
func stm(ctx context.Context, e *env) error {
	if err := conflicts(ctx, e); err != nil {
		return err
	}
	const accounts, each, workers, turns = 3, 100, 6, 10
	account := func(number int) string { return fmt.Sprint(e.prefix, "account/", number%accounts) }
	for number := range accounts {
		if _, err := e.client.Put(ctx, account(number), strconv.Itoa(each)); err != nil {
			return err
		}
	}
	var tries atomic.Int64
	err := together(workers, func(worker int) error {
		for turn := range turns {
			from, to := account(worker+turn), account(worker+turn+1+turn%2)
			_, err := concurrency.NewSTM(e.client, func(s concurrency.STM) error {
				tries.Add(1)
				has, err := strconv.Atoi(s.Get(from))
				other, err2 := strconv.Atoi(s.Get(to))
				if err = errors.Join(err, err2); err != nil {
					return err
				}
				s.Put(from, strconv.Itoa(has-7))
				s.Put(to, strconv.Itoa(other+7))
				return nil
			}, concurrency.WithAbortContext(ctx), concurrency.WithPrefetch(from, to))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	total := 0
	for number := range accounts {
		got, err := e.client.Get(ctx, account(number))
		if err != nil {
			return err
		}
		has, err := strconv.Atoi(string(got.Kvs[0].Value))
		if err != nil {
			return err
		}
		total += has
	}
	e.say("%d transfers took %d tries", workers*turns, tries.Load())
	return want("the total", total, accounts*each)
}

// conflicts: somebody changes what a transaction has read before it commits. All levels but one then begin anew.
func conflicts(ctx context.Context, e *env) error {
	key, copied := e.prefix+"read", e.prefix+"copy"
	for level, wanted := range map[concurrency.Isolation]int{
		concurrency.SerializableSnapshot: 2, concurrency.Serializable: 2, concurrency.RepeatableReads: 2, concurrency.ReadCommitted: 1,
	} {
		tries := 0
		_, err := concurrency.NewSTM(e.client, func(s concurrency.STM) error {
			tries++
			seen := s.Get(key)
			if tries == 1 {
				if _, err := e.client.Put(ctx, key, fmt.Sprint("changed at level ", level)); err != nil {
					return err
				}
			}
			s.Put(copied, seen)
			return nil
		}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx))
		if err != nil {
			return err
		}
		if err := want(fmt.Sprint("tries at isolation level ", level), tries, wanted); err != nil {
			return err
		}
	}
	return nil
}
