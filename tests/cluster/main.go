// The programs of a whole Kubernetes node in one binary.
//
// Where no cluster is at hand, `cargo xtask cluster up` builds this module and boots a real one from it. The binary is
// many programs: which one runs is decided by the name it is called under (a symlink) or by its first argument, as in
// busybox. Linking them together shares the packages they have in common, which makes one build of five minutes out of
// nine builds of two to four.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// faces are the programs in this binary, by the name each is called under.
var faces = map[string]func(){
	"coredns":                 coreDNS,
	"etcd":                    etcd,
	"helm":                    helm,
	"kube-apiserver":          kubeAPIServer,
	"kube-controller-manager": kubeControllerManager,
	"kube-proxy":              kubeProxy,
	"kube-scheduler":          kubeScheduler,
	"kubectl":                 kubectl,
	"kubelet":                 kubelet,
	"node":                    node,
}

func main() {
	if run, ok := faces[filepath.Base(os.Args[0])]; ok {
		run()
		return
	}
	if len(os.Args) > 1 {
		if run, ok := faces[os.Args[1]]; ok {
			os.Args = os.Args[1:]
			run()
			return
		}
	}
	names := make([]string, 0, len(faces))
	for name := range faces {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(os.Stderr, "usage: %s PROGRAM [ARGUMENTS]\nprograms: %s\n", filepath.Base(os.Args[0]), strings.Join(names, " "))
	os.Exit(64)
}
