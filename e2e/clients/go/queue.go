package main

import (
	"context"
	"errors"
	"fmt"

	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

// queue: first in, first out, by the create revision; several takers get each item once; priorities go before.
func queue(ctx context.Context, e *env) error {
	line := recipe.NewQueue(e.client, e.prefix+"line")
	for number := range 10 {
		if err := line.Enqueue(fmt.Sprint(number)); err != nil {
			return err
		}
	}
	for number := range 10 {
		got, err := line.Dequeue()
		if err != nil {
			return err
		}
		if err := want("the next in line", got, fmt.Sprint(number)); err != nil {
			return err
		}
	}
	const makers, takers, each = 3, 3, 10
	taken := make(chan string, makers*each)
	err := together(makers+takers, func(number int) error {
		c, err := e.at(number)
		if err != nil {
			return err
		}
		shared := recipe.NewQueue(c, e.prefix+"shared")
		for item := range each {
			if number < makers {
				err = errors.Join(err, shared.Enqueue(fmt.Sprint(number, "/", item)))
				continue
			}
			got, failed := shared.Dequeue()
			err = errors.Join(err, failed)
			taken <- got
		}
		return err
	})
	if err != nil {
		return err
	}
	close(taken)
	seen := map[string]bool{}
	for item := range taken {
		if seen[item] {
			return fmt.Errorf("%s was taken twice", item)
		}
		seen[item] = true
	}
	if err := want("items taken", len(seen), makers*each); err != nil {
		return err
	}
	urgent := recipe.NewPriorityQueue(e.client, e.prefix+"urgent")
	for _, item := range []uint16{5, 1, 3, 1} {
		if err := urgent.Enqueue(fmt.Sprint(item), item); err != nil {
			return err
		}
	}
	for _, wanted := range []string{"1", "1", "3", "5"} {
		got, err := urgent.Dequeue()
		if err != nil {
			return err
		}
		if err := want("the most urgent", got, wanted); err != nil {
			return err
		}
	}
	e.say("in order, each once, and the urgent before the others")
	return nil
}
