// CoreDNS as its release builds it, with the plugins that a cluster's own DNS uses and no others: the stock binary
// links the clients of four clouds, which on two cores takes minutes to compile and adds nothing to a test cluster.
package main

import (
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/ready"

	"github.com/coredns/coredns/coremain"
)

func main() {
	coremain.Run()
}
