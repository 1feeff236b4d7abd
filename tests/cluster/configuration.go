package main

import (
	"os"
	"os/exec"
	"path/filepath"
)

// The image of a pod's sandbox: its archive is among those the node imports at its start.
const pauseImage = "docker.io/library/mcp-mqtt-pause:dev"

const containerdConfiguration = `version = 2
root = "${STATE}/containerd"
state = "/run/containerd"
# opt would make a directory on the machine; the others have nothing to work on.
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "${SOCKET}"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "${PAUSE}"
# Containers of this one have no CAP_SYS_RESOURCE to lower a score with.
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"

[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "${SNAPSHOTTER}"
default_runtime_name = "runc"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "${CNI}"
conf_dir = "${STATE}/etc/cni"
`

// Point-to-point, so that pods are routed and not bridged: their way to a service and back passes the node's packet
// filter with no bridge filtering in the kernel.
const cniConfiguration = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {
      "type": "ptp",
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "dataDir": "${STATE}/var/cni/addresses",
        "ranges": [[{"subnet": "${PODS}"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

const kubeletConfiguration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: ${STATE}/pki/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: ${STATE}/pki/kubelet-serving.crt
tlsPrivateKeyFile: ${STATE}/pki/kubelet-serving.key
clusterDNS: [${DNS}]
clusterDomain: ${DOMAIN}
resolvConf: ${STATE}/etc/resolv.conf
containerRuntimeEndpoint: unix://${SOCKET}
podLogsDir: /var/log/pods
volumePluginDir: ${STATE}/var/volume-plugins
cgroupDriver: cgroupfs
cgroupRoot: /${CGROUP}
failCgroupV1: false
failSwapOn: false
# The node's size is the machine's, and the machine is shared.
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
maxPods: 250
makeIPTablesUtilChains: false
oomScoreAdj: 0
serializeImagePulls: false
kubeAPIQPS: 100
kubeAPIBurst: 200
registryPullQPS: 0
`

const proxyConfiguration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: ${STATE}/pki/proxy.kubeconfig}
hostnameOverride: "${NAME}"
mode: nftables
clusterCIDR: ${PODS}
oomScoreAdj: 0
# The connection table's size has no namespace: leave the machine's alone.
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// A name outside the cluster is answered "no such name" at once: there is no way out, so a wait would be in vain.
const corefile = `${DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {
  bind ${NODE}
  errors
  ready ${READY}
  kubernetes ${DOMAIN} in-addr.arpa ip6.arpa {
    kubeconfig "${STATE}/pki/coredns.kubeconfig"
    pods insecure
    ttl 1
  }
}
.:53 {
  bind ${NODE}
  errors
  template ANY ANY . {
    rcode NXDOMAIN
  }
}
`

// Tests read from the audit log who asked for what: everything about our own objects, and what pods and people do to
// others, without the hum of the cluster's own parts.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    resources: [{group: mcp-mqtt.io}]
  - level: None
    users: [system:apiserver, system:kube-controller-manager, system:kube-scheduler, system:kube-proxy, system:coredns]
  - level: None
    userGroups: [system:nodes, system:serviceaccounts:kube-system]
  - level: None
    nonResourceURLs: ["/readyz*", "/livez*", "/healthz*", "/version", "/openapi*"]
  - level: Metadata
`

func writeConfiguration(at paths, snapshotter string) error {
	values := map[string]string{
		"STATE": at.state, "NAME": at.name, "CGROUP": at.cgroup(), "SOCKET": containerdSocket, "PAUSE": pauseImage,
		"SNAPSHOTTER": snapshotter, "CNI": cniPlugins(), "PODS": podRange, "DNS": dnsService, "DOMAIN": dnsDomain,
		"NODE": nodeAddress, "READY": coreDNSReady,
	}
	for file, content := range map[string]string{
		"etc/audit-policy.yaml": auditPolicy,
		"etc/cni/pods.conflist": cniConfiguration,
		"etc/containerd.toml":   containerdConfiguration,
		"etc/Corefile":          corefile,
		"etc/kube-proxy.yaml":   proxyConfiguration,
		"etc/kubelet.yaml":      kubeletConfiguration,
		"etc/resolv.conf":       "",
		// For whoever imports further images later.
		"snapshotter": snapshotter,
	} {
		if err := writeFile(at.file(file), os.Expand(content, func(name string) string { return values[name] })); err != nil {
			return err
		}
	}
	return os.MkdirAll(at.file("var", "volume-plugins"), 0o755)
}

func writeFile(file, content string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(content), 0o644)
}

// cniPlugins finds the directory of the network plugins: Debian's, or the one upstream's releases use.
func cniPlugins() string {
	for _, directory := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(directory, "ptp")); err == nil {
			return directory
		}
	}
	return "/usr/lib/cni"
}

// look finds a program of the machine's; one that is missing is named by the attempt to start it.
func look(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return "/usr/bin/" + name
}
