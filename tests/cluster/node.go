package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// node is the program that boots a whole single-node cluster and stays as its first process.
//
// `node start` makes the namespaces and returns; `node run` is what then runs inside them, as process 1. Killing that
// one process ends every other of the cluster, shims and pods included, and the kernel takes its mounts, its network
// and its processes away with it: however the cluster ends, nothing stays behind but files and empty cgroups.
func node() {
	if len(os.Args) < 2 {
		die("usage: node start|run --name NAME --state DIRECTORY")
	}
	verb := os.Args[1]
	flags := flag.NewFlagSet("node "+verb, flag.ExitOnError)
	name := flags.String("name", "", "the cluster's name, also its node's")
	state := flags.String("state", "", "absolute directory for everything the cluster writes")
	if err := flags.Parse(os.Args[2:]); err != nil || *name == "" || !filepath.IsAbs(*state) {
		die("node %s: --name and an absolute --state are needed", verb)
	}
	switch verb {
	case "start":
		startNode(*name, *state)
	case "run":
		runNode(paths{name: *name, state: *state})
	default:
		die("node: no verb %q: it is start or run", verb)
	}
}

// startNode clones `node run` into namespaces of its own, detached from the caller's terminal and lifetime.
func startNode(name, state string) {
	log, err := os.OpenFile(filepath.Join(state, "log", "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		die("node: %v", err)
	}
	command := exec.Command("/proc/self/exe")
	// `xtask` finds the running node by these very arguments.
	command.Args = []string{"kubernetes", "node", "run", "--name=" + name, "--state=" + state}
	command.Dir = "/"
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	if err := command.Start(); err != nil {
		die("node: cannot make its namespaces (root is needed): %v", err)
	}
}

// runNode boots the cluster step by step, then watches over it until a process of it ends.
func runNode(at paths) {
	journal := openJournal(at)
	supervisor := newSupervisor(at, journal)
	defer func() {
		if cause := recover(); cause != nil {
			journal.failed(fmt.Sprint(cause))
			os.Exit(1)
		}
	}()

	// The machine below.
	must("isolate the mounts", isolateMounts(at))
	must("make the cgroups", makeCgroups(at))
	must("set up the network", setUpNetwork())
	snapshotter := pickSnapshotter(at)
	must("write certificates and kubeconfigs", writeCredentials(at))
	must("write configuration", writeConfiguration(at, snapshotter))
	journal.step("namespaces, network, certificates")

	// The container runtime takes its time beside etcd and the API server.
	runtimeReady := make(chan error, 1)
	supervisor.start(containerd(at))
	go func() {
		err := awaitSocket(containerdSocket, 20*time.Second)
		if err == nil {
			err = importImages(at, supervisor, snapshotter)
		}
		runtimeReady <- err
	}()
	supervisor.start(etcdProgram(at))
	must("reach etcd", awaitPort("127.0.0.1:2379", 20*time.Second))
	journal.step("etcd")
	supervisor.start(apiServerProgram(at))
	api, err := connect(at)
	must("connect to the API server", err)
	must("reach the API server", api.awaitServer(60*time.Second))
	journal.step("API server")

	must("start containerd and import the pause image", <-runtimeReady)
	journal.step("containerd")
	supervisor.start(kubeletProgram(at))
	supervisor.start(controllerManagerProgram(at))
	supervisor.start(schedulerProgram(at))
	supervisor.start(proxyProgram(at))
	supervisor.start(coreDNSProgram(at))
	must("create the DNS service", api.createDNSService())
	must("see the node become Ready", api.awaitNode(at.name, 60*time.Second))
	journal.step("node Ready")
	must("see the default service account", api.awaitServiceAccount(30*time.Second))
	must("reach CoreDNS", awaitPort(coreDNSReady, 30*time.Second))
	must("see CoreDNS become ready", awaitHTTP("http://"+coreDNSReady+"/ready", 30*time.Second))
	journal.step("controllers and DNS")
	journal.ready()

	supervisor.watch()
}

// must ends the boot: there is nothing a half-booted cluster is good for.
func must(what string, err error) {
	if err != nil {
		panic(fmt.Sprintf("could not %s: %v", what, err))
	}
}

func die(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", arguments...)
	os.Exit(1)
}
