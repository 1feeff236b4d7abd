package main

import (
	"path/filepath"
)

const (
	containerdSocket = "/run/containerd/containerd.sock"
	coreDNSReady     = "127.0.0.1:8181"
	dnsDomain        = "cluster.local"
)

// The command line of each component. What can stand in a configuration file is in configuration.go.

func containerd(at paths) program {
	return program{
		name: "containerd", path: look("containerd"),
		args: []string{"--config", at.file("etc", "containerd.toml")},
	}
}

func etcdProgram(at paths) program {
	return program{name: "etcd", args: []string{
		"--name=" + at.name,
		"--data-dir=" + at.file("etcd"),
		"--listen-client-urls=http://127.0.0.1:2379",
		"--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=" + at.name + "=http://127.0.0.1:2380",
		// Nothing here has to survive a crash of the machine, and no peer has to be waited for.
		"--unsafe-no-fsync",
		"--heartbeat-interval=50", "--election-timeout=250",
		"--log-level=warn",
	}}
}

func apiServerProgram(at paths) program {
	pki := func(name string) string { return at.file("pki", name) }
	return program{name: "kube-apiserver", args: []string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--secure-port=6443",
		"--advertise-address=" + nodeAddress,
		"--service-cluster-ip-range=" + serviceRange,
		"--client-ca-file=" + pki("ca.crt"),
		"--tls-cert-file=" + pki("apiserver.crt"),
		"--tls-private-key-file=" + pki("apiserver.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--service-account-issuer=https://kubernetes.default.svc." + dnsDomain,
		"--service-account-key-file=" + pki("service-account.pub"),
		"--service-account-signing-key-file=" + pki("service-account.key"),
		// The node's name is in no DNS.
		"--kubelet-preferred-address-types=InternalIP",
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"),
		"--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		// For aggregated APIs, such as the metrics an autoscaler reads; straight to their pods.
		"--enable-aggregator-routing=true",
		"--proxy-client-cert-file=" + pki("front-proxy-client.crt"),
		"--proxy-client-key-file=" + pki("front-proxy-client.key"),
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--audit-policy-file=" + at.file("etc", "audit-policy.yaml"),
		"--audit-log-path=" + at.file("log", "audit.log"),
		"--audit-log-maxsize=1000", // megabytes: a reader that follows the file need not follow a rotation
	}}
}

func controllerManagerProgram(at paths) program {
	return program{name: "kube-controller-manager", args: []string{
		"--kubeconfig=" + at.file("pki", "controller-manager.kubeconfig"),
		"--authentication-kubeconfig=" + at.file("pki", "controller-manager.kubeconfig"),
		"--authorization-kubeconfig=" + at.file("pki", "controller-manager.kubeconfig"),
		"--leader-elect=false",
		// Each controller under its own account: a role that is missing for real is missing here.
		"--use-service-account-credentials=true",
		"--root-ca-file=" + at.file("pki", "ca.crt"),
		"--service-account-private-key-file=" + at.file("pki", "service-account.key"),
		"--cluster-signing-cert-file=" + at.file("pki", "ca.crt"),
		"--cluster-signing-key-file=" + at.file("pki", "ca.key"),
		"--flex-volume-plugin-dir=" + at.file("var", "volume-plugins"),
		// Scaling that takes minutes in earnest takes seconds here.
		"--horizontal-pod-autoscaler-sync-period=5s",
		"--horizontal-pod-autoscaler-downscale-stabilization=10s",
		"--horizontal-pod-autoscaler-initial-readiness-delay=5s",
		"--kube-api-qps=200", "--kube-api-burst=400",
	}}
}

func schedulerProgram(at paths) program {
	kubeconfig := at.file("pki", "scheduler.kubeconfig")
	return program{name: "kube-scheduler", args: []string{
		"--kubeconfig=" + kubeconfig,
		"--authentication-kubeconfig=" + kubeconfig,
		"--authorization-kubeconfig=" + kubeconfig,
		"--leader-elect=false",
		"--kube-api-qps=200", "--kube-api-burst=400",
	}}
}

func kubeletProgram(at paths) program {
	return program{name: "kubelet", args: []string{
		"--config=" + at.file("etc", "kubelet.yaml"),
		"--kubeconfig=" + at.file("pki", "kubelet.kubeconfig"),
		"--hostname-override=" + at.name,
		"--node-ip=" + nodeAddress,
	}}
}

func proxyProgram(at paths) program {
	return program{name: "kube-proxy", args: []string{"--config=" + at.file("etc", "kube-proxy.yaml")}}
}

func coreDNSProgram(at paths) program {
	return program{name: "coredns", args: []string{"-conf", at.file("etc", "Corefile")}}
}

// importImages hands the archives that were laid out for the node to containerd.
func importImages(at paths, supervisor *supervisor, snapshotter string) error {
	archives, err := filepath.Glob(at.file("images", "*.tar"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		err := supervisor.command(program{name: "ctr", path: look("ctr"), args: []string{
			"--address", containerdSocket, "--namespace", "k8s.io",
			"images", "import", "--snapshotter", snapshotter, archive,
		}})
		if err != nil {
			return err
		}
	}
	return nil
}
