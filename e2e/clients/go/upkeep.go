package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// upkeep: what those who run a cluster ask it for.
func upkeep(ctx context.Context, e *env) error {
	put, err := e.client.Put(ctx, e.prefix+"k", "v")
	if err != nil {
		return err
	}
	list, err := e.client.MemberList(ctx)
	if err != nil {
		return err
	}
	if err := want("members", len(list.Members), len(e.endpoints)); err != nil {
		return err
	}
	var leader, follower uint64
	var hash uint32
	var leaderAt string
	for number, endpoint := range e.endpoints {
		c, err := e.at(number)
		if err != nil {
			return err
		}
		// A linearizable read brings it up to date.
		if _, err := c.Get(ctx, e.prefix+"k"); err != nil {
			return err
		}
		status, err := c.Status(ctx, endpoint)
		if err != nil {
			return err
		}
		if len(status.Errors) != 0 || status.IsLearner || status.Version != "3.7.1" {
			return fmt.Errorf("status: %+v", status)
		}
		if status.Leader == status.Header.MemberId {
			leader, leaderAt = status.Leader, endpoint
		} else {
			follower = status.Header.MemberId
		}
		hashed, err := c.HashKV(ctx, endpoint, put.Header.Revision)
		if err != nil {
			return err
		}
		if number > 0 && hashed.Hash != hash {
			return fmt.Errorf("%s has hash %d, another %d", endpoint, hashed.Hash, hash)
		}
		hash = hashed.Hash
		if _, err := c.Defragment(ctx, endpoint); err != nil {
			return err
		}
	}
	alarms, err := e.client.AlarmList(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(want("alarms", len(alarms.Alarms), 0), snapshot(ctx, e)); err != nil || len(e.endpoints) == 1 {
		return err
	}
	c, err := e.connect(leaderAt)
	if err != nil {
		return err
	}
	if _, err := c.MoveLeader(ctx, 4711); !errors.Is(err, rpctypes.ErrBadLeaderTransferee) {
		return fmt.Errorf("moving the leader to nobody: %w", err)
	}
	if _, err := c.MoveLeader(ctx, follower); err != nil {
		return err
	}
	e.say("the leader moved from %x to %x; hashes agree; a snapshot is whole", leader, follower)
	return nil
}

// snapshot: its last 32 bytes are the hash of those before.
func snapshot(ctx context.Context, e *env) error {
	got, err := e.client.SnapshotWithVersion(ctx)
	if err != nil {
		return err
	}
	defer got.Snapshot.Close()
	whole, err := io.ReadAll(got.Snapshot)
	if err != nil {
		return err
	}
	if len(whole)%512 != sha256.Size {
		return fmt.Errorf("a snapshot of %d bytes", len(whole))
	}
	at := len(whole) - sha256.Size
	hash := sha256.Sum256(whole[:at])
	return errors.Join(want("whether the hash is right", bytes.Equal(hash[:], whole[at:]), true), want("version", got.Version, "3.7.0"))
}

// auth: a user whose rights end where they end, through a leader that forgets the tokens that it gave out.
func auth(ctx context.Context, e *env) error {
	c := e.client
	_, err := c.UserAdd(ctx, "root", "secret")
	steps := []error{err}
	_, err = c.RoleAdd(ctx, "app")
	steps = append(steps, err)
	_, err = c.RoleGrantPermission(ctx, "app", e.prefix, clientv3.GetPrefixRangeEnd(e.prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	steps = append(steps, err)
	_, err = c.UserAdd(ctx, "app", "password")
	steps = append(steps, err)
	_, err = c.UserGrantRole(ctx, "app", "app")
	steps = append(steps, err)
	_, err = c.RoleAdd(ctx, "root")
	steps = append(steps, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	steps = append(steps, err)
	_, err = c.AuthEnable(ctx)
	if err = errors.Join(append(steps, err)...); err != nil {
		return err
	}
	worked := asUsers(ctx, e)
	root, err := e.connectAs("root", "secret", e.endpoints...)
	if err != nil {
		return errors.Join(worked, err)
	}
	_, err = root.AuthDisable(ctx)
	for _, user := range []string{"app", "root"} {
		_, deleted := c.UserDelete(ctx, user)
		_, removed := c.RoleDelete(ctx, user)
		err = errors.Join(err, deleted, removed)
	}
	return errors.Join(worked, err)
}

func asUsers(ctx context.Context, e *env) error {
	app, err := e.connectAs("app", "password", e.endpoints...)
	if err != nil {
		return err
	}
	w := app.Watch(ctx, e.prefix+"k", clientv3.WithCreatedNotify())
	if first := <-w; !first.Created {
		return fmt.Errorf("not told that it was created: %+v, %w", first, first.Err())
	}
	done := e.disturbed()
	for turn := 0; turn < 20 || !isDone(done); turn++ {
		if err := again(ctx, func(ctx context.Context) error {
			_, err := app.Put(ctx, e.prefix+"k", fmt.Sprint(turn))
			return err
		}); err != nil {
			return err
		}
	}
	if _, err := app.Put(ctx, "elsewhere", "v"); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return fmt.Errorf("a put elsewhere: %w", err)
	}
	if _, err := app.UserList(ctx); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return fmt.Errorf("asking for the users: %w", err)
	}
	if _, err := e.client.Get(ctx, e.prefix+"k"); !errors.Is(err, rpctypes.ErrUserEmpty) {
		return fmt.Errorf("a read without a name: %w", err)
	}
	wrong, err := e.connectAs("app", "wrong", e.endpoints...)
	if err == nil {
		_, err = wrong.Get(ctx, e.prefix+"k")
	}
	if !errors.Is(err, rpctypes.ErrAuthFailed) {
		return fmt.Errorf("a wrong password: %w", err)
	}
	if got := <-w; len(got.Events) == 0 {
		return fmt.Errorf("the watch: %+v, %w", got, got.Err())
	}
	e.say("app writes what it may, through everything that happens")
	return nil
}
