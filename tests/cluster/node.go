package main

import (
	"os"

	"github.com/vishvananda/netlink"
	"k8s.io/client-go/kubernetes"
)

func node() {
	_, _ = netlink.LinkByName("lo")
	_ = kubernetes.Clientset{}
	os.Exit(1)
}
