package main

import (
	"context"
	"errors"
	"sync/atomic"

	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

// barrier: nobody passes while somebody holds it.
func barrier(ctx context.Context, e *env) error {
	gate := recipe.NewBarrier(e.client, e.prefix+"gate")
	if err := gate.Hold(); err != nil {
		return err
	}
	if err := gate.Hold(); err == nil {
		return errors.New("the barrier is held twice")
	}
	var open atomic.Bool
	var waiting atomic.Int64
	result := make(chan error, 1)
	go func() {
		result <- together(3, func(number int) error {
			c, err := e.at(number)
			if err != nil {
				return err
			}
			waiting.Add(1)
			if err := recipe.NewBarrier(c, e.prefix+"gate").Wait(); err != nil {
				return err
			}
			return want("whether it is open", open.Load(), true)
		})
	}()
	if err := again(ctx, func(context.Context) error { return want("who waits", waiting.Load(), 3) }); err != nil {
		return err
	}
	open.Store(true)
	if err := gate.Release(); err != nil {
		return err
	}
	e.say("three waited until it was released")
	return <-result
}

// doubleBarrier: nobody begins before all are there, and nobody goes before all are done.
func doubleBarrier(ctx context.Context, e *env) error {
	const count = 3
	var there, done atomic.Int64
	e.say("%d begin together and end together", count)
	return together(count, func(int) error {
		s, err := e.session(60)
		if err != nil {
			return err
		}
		defer s.Close()
		b := recipe.NewDoubleBarrier(s, e.prefix+"gate", count)
		there.Add(1)
		if err := b.Enter(); err != nil {
			return err
		}
		begun := there.Load()
		done.Add(1)
		if err := b.Leave(); err != nil {
			return err
		}
		return errors.Join(want("who was there", begun, count), want("who was done", done.Load(), count))
	})
}
