package main

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease: one that is kept alive outlives the leader; one that is not takes its keys along.
func lease(ctx context.Context, e *env) error {
	c := e.client
	// Long enough for the client to wait for a new leader on a busy machine; it says so every third of it.
	kept, err := c.Grant(ctx, 20)
	if err != nil {
		return err
	}
	alive, err := c.KeepAlive(ctx, kept.ID)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, e.prefix+"kept", "v", clientv3.WithLease(kept.ID)); err != nil {
		return err
	}
	done := e.disturbed()
	for after := false; !after; after = isDone(done) {
		if _, open := <-alive; !open {
			return errors.New("a lease that is kept alive ended")
		}
	}
	if _, err := c.KeepAliveOnce(ctx, kept.ID); err != nil {
		return fmt.Errorf("keeping it alive once more: %w", err)
	}
	left, err := c.TimeToLive(ctx, kept.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if left.TTL <= 0 || left.GrantedTTL != 20 || len(left.Keys) != 1 || string(left.Keys[0]) != e.prefix+"kept" {
		return fmt.Errorf("time to live: %+v", left)
	}
	all, err := c.Leases(ctx)
	if err != nil {
		return err
	}
	listed := false
	for _, one := range all.Leases {
		listed = listed || one.ID == kept.ID
	}
	if err := want("whether the lease is listed", listed, true); err != nil {
		return err
	}
	e.say("a lease was kept alive")
	if _, err := c.Revoke(ctx, kept.ID); err != nil {
		return err
	}
	if err := waitForCount(ctx, c, e.prefix+"kept", 0); err != nil {
		return err
	}
	if _, err := c.Revoke(ctx, kept.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("revoking twice: %w", err)
	}

	short, err := c.Grant(ctx, 2)
	if err != nil {
		return err
	}
	put, err := c.Put(ctx, e.prefix+"short", "v", clientv3.WithLease(short.ID))
	if err != nil {
		return err
	}
	w := c.Watch(ctx, e.prefix+"short", clientv3.WithRev(put.Header.Revision+1))
	if got := <-w; len(got.Events) != 1 || got.Events[0].Type != clientv3.EventTypeDelete {
		return fmt.Errorf("waiting for a lease to end: %+v, %w", got, got.Err())
	}
	_, err = c.KeepAliveOnce(ctx, short.ID)
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("keeping an ended lease alive: %w", err)
	}
	if _, err = c.Put(ctx, e.prefix+"late", "v", clientv3.WithLease(short.ID)); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("a put with an ended lease: %w", err)
	}
	if gone, err := c.TimeToLive(ctx, short.ID); err != nil || gone.TTL != -1 {
		return fmt.Errorf("time to live of an ended lease: %+v, %w", gone, err)
	}
	e.say("a lease that nobody kept alive took its key along")
	return nil
}
