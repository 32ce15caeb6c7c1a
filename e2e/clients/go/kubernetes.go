package main

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.uber.org/zap"
)

// kube: the part of the client that kube-apiserver stores its objects with.
func kube(ctx context.Context, e *env) error {
	c, err := kubernetes.New(clientv3.Config{Endpoints: e.endpoints, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	k, pods := c.Kubernetes, e.prefix+"pods/"
	var revision int64
	for number := range 5 {
		made, err := k.OptimisticPut(ctx, fmt.Sprint(pods, number), []byte("v1"), 0, kubernetes.PutOptions{})
		if err != nil || !made.Succeeded {
			return fmt.Errorf("making an object: %+v, %w", made, err)
		}
		revision = made.Revision
	}
	key := fmt.Sprint(pods, 4)
	again, err := k.OptimisticPut(ctx, key, []byte("v2"), 0, kubernetes.PutOptions{GetOnFailure: true})
	if err != nil || again.Succeeded || again.KV.ModRevision != revision {
		return fmt.Errorf("making it twice: %+v, %w", again, err)
	}
	changed, err := k.OptimisticPut(ctx, key, []byte("v2"), revision, kubernetes.PutOptions{})
	if err != nil || !changed.Succeeded {
		return fmt.Errorf("changing it: %+v, %w", changed, err)
	}
	old, err := k.Get(ctx, key, kubernetes.GetOptions{Revision: revision})
	if err != nil || string(old.KV.Value) != "v1" {
		return fmt.Errorf("reading what it was: %+v, %w", old, err)
	}
	page, err := k.List(ctx, pods, kubernetes.ListOptions{Limit: 2})
	if err != nil || len(page.Kvs) != 2 || page.Count != 5 {
		return fmt.Errorf("the first page: %+v, %w", page, err)
	}
	rest, err := k.List(ctx, pods, kubernetes.ListOptions{Revision: page.Revision, Continue: string(page.Kvs[1].Key) + "\x00"})
	if err != nil || len(rest.Kvs) != 3 || rest.Revision < page.Revision {
		return fmt.Errorf("the rest: %+v, %w", rest, err)
	}
	stale, err := k.OptimisticDelete(ctx, key, revision, kubernetes.DeleteOptions{GetOnFailure: true})
	if err != nil || stale.Succeeded || string(stale.KV.Value) != "v2" {
		return fmt.Errorf("deleting what was changed: %+v, %w", stale, err)
	}
	gone, err := k.OptimisticDelete(ctx, key, changed.Revision, kubernetes.DeleteOptions{})
	if err != nil || !gone.Succeeded {
		return fmt.Errorf("deleting it: %+v, %w", gone, err)
	}
	count, err := k.Count(ctx, pods, kubernetes.CountOptions{})
	e.say("objects made, changed, listed by pages and deleted, each against its revision")
	return errors.Join(err, want("objects left", count, 4))
}
