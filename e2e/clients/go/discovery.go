package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/naming/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// discovery: services register under leases; who looks for them reads the list, then follows its changes. One says
// good-bye, one is lost and disappears with its lease.
func discovery(ctx context.Context, e *env) error {
	services := e.prefix + "web/"
	register := func(name string, seconds int64) (clientv3.LeaseID, error) {
		grant, err := e.client.Grant(ctx, seconds)
		if err != nil {
			return 0, err
		}
		_, err = e.client.Put(ctx, services+name, "10.0.0.1:80", clientv3.WithLease(grant.ID))
		return grant.ID, err
	}
	polite, err := register("polite", 60)
	if err != nil {
		return err
	}
	if _, err := register("lost", 2); err != nil {
		return err
	}
	alive, err := register("alive", 30)
	if err != nil {
		return err
	}
	kept, err := e.client.KeepAlive(ctx, alive)
	if err != nil {
		return err
	}
	list, err := e.client.Get(ctx, services, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, kv := range list.Kvs {
		known[string(kv.Key[len(services):])] = true
	}
	changes := e.client.Watch(ctx, services, clientv3.WithPrefix(), clientv3.WithRev(list.Header.Revision+1))
	if _, err := register("late", 60); err != nil {
		return err
	}
	if _, err := e.client.Revoke(ctx, polite); err != nil {
		return err
	}
	for change := range changes {
		if err := change.Err(); err != nil {
			return err
		}
		for _, event := range change.Events {
			name := string(event.Kv.Key[len(services):])
			if known[name] = event.Type == clientv3.EventTypePut; !known[name] {
				delete(known, name)
			}
		}
		if len(known) == 2 && known["alive"] && known["late"] {
			if _, open := <-kept; !open {
				return errors.New("the lease that is kept alive ended")
			}
			e.say("found alive and late; polite left, and lost was let go of")
			return nil
		}
	}
	return fmt.Errorf("known at the end: %v", known)
}

// backend is a gRPC service that counts its calls.
type backend struct {
	grpc_health_v1.UnimplementedHealthServer
	calls atomic.Int64
}

func (b *backend) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	b.calls.Add(1)
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// balance: calls go around the endpoints that are registered, and pass over one that is registered no more.
func balance(ctx context.Context, e *env) error {
	const service = "balance/service"
	manager, err := endpoints.NewManager(e.client, service)
	if err != nil {
		return err
	}
	var backends [3]backend
	for number := range backends {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		server := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(server, &backends[number])
		go server.Serve(listener)
		defer server.Stop()
		grant, err := e.client.Grant(ctx, 60)
		if err != nil {
			return err
		}
		endpoint := endpoints.Endpoint{Addr: listener.Addr().String(), Metadata: number}
		if err := manager.AddEndpoint(ctx, fmt.Sprint(service, "/", number), endpoint, clientv3.WithLease(grant.ID)); err != nil {
			return err
		}
	}
	builder, err := resolver.NewBuilder(e.client)
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient("etcd:///"+service, grpc.WithResolvers(builder),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	if err != nil {
		return err
	}
	defer connection.Close()
	health := grpc_health_v1.NewHealthClient(connection)
	call := func() error {
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}
	for backends[0].calls.Load() < 5 || backends[1].calls.Load() < 5 || backends[2].calls.Load() < 5 {
		if err := call(); err != nil {
			return fmt.Errorf("not all are called: %w", err)
		}
	}
	e.say("calls go to all three")
	if err := manager.DeleteEndpoint(ctx, service+"/1"); err != nil {
		return err
	}
	// The client hears of it in its own time; from then on no call goes there.
	for last, since := backends[1].calls.Load(), 0; since < 30; since++ {
		if err := call(); err != nil {
			return fmt.Errorf("after one left: %w", err)
		}
		if now := backends[1].calls.Load(); now != last {
			last, since = now, 0
		}
	}
	// The list is a serializable read, of whichever member is asked: one that is behind may still name three.
	for {
		list, err := manager.List(ctx)
		if err != nil {
			return fmt.Errorf("two are listed: %w", err)
		}
		if len(list) == 2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	e.say("and to two when one is not registered any more")
	return nil
}
