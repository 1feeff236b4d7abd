package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
)

const (
	// From the range set aside for benchmarks (RFC 2544): it stands for no machine anywhere.
	nodeAddress = "198.18.0.1"
	nodeGateway = "198.18.0.2"
	podRange    = "10.244.0.0/16"
	// The service range, and the two addresses in it that are known beforehand.
	serviceRange = "10.96.0.0/16"
	apiService   = "10.96.0.1"
	dnsService   = "10.96.0.10"
)

// paths knows where the cluster keeps its things.
type paths struct {
	name  string
	state string
}

func (at paths) file(parts ...string) string {
	return filepath.Join(append([]string{at.state}, parts...)...)
}

func (at paths) cgroup() string { return "mcp-mqtt-" + at.name }

// isolateMounts gives the node its own view of the places where its programs write by fixed names.
func isolateMounts(at paths) error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make / private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, directory := range []string{"/var/lib/kubelet", "/var/lib/cni", "/var/log"} {
		own := at.file("var", filepath.Base(directory))
		if err := bindDirectory(own, directory); err != nil {
			return err
		}
	}
	if err := syscall.Sethostname([]byte(at.name)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return shadowKernelSettings(at)
}

func bindDirectory(own, directory string) error {
	for _, path := range []string{own, directory} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
	}
	if err := syscall.Mount(own, directory, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", own, directory, err)
	}
	return nil
}

// shadowKernelSettings lays plain files over the kernel settings that a kubelet changes and that have no namespace:
// it finds them as it wants them, and the machine keeps its own.
func shadowKernelSettings(at paths) error {
	for setting, wanted := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		own := at.file("sys", filepath.Base(setting))
		if err := writeFile(own, wanted+"\n"); err != nil {
			return err
		}
		err := syscall.Mount(own, "/proc/sys/"+setting, "", syscall.MS_BIND, "")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("mount over /proc/sys/%s: %w", setting, err)
		}
	}
	return nil
}

// makeCgroups makes the cluster's own root in every cgroup hierarchy (one under v2, a dozen under v1).
func makeCgroups(at paths) error {
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return err
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || (fields[2] != "cgroup" && fields[2] != "cgroup2") {
			continue
		}
		root := filepath.Join(fields[1], at.cgroup())
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		// A cpuset of v1 starts empty and takes no process until it has what its parent has.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if fields[2] != "cgroup" {
				continue
			}
			if inherited, err := os.ReadFile(filepath.Join(fields[1], file)); err == nil {
				_ = os.WriteFile(filepath.Join(root, file), inherited, 0o644)
			}
		}
	}
	return nil
}

// setUpNetwork gives the node an address and a default route, on a cable whose both ends stay in this namespace: the
// kernel wants a route before a service address is translated, and what is translated to nothing must go nowhere.
func setUpNetwork() error {
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return err
	}
	attributes := netlink.NewLinkAttrs()
	attributes.Name = "node"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attributes, PeerName: "nowhere"}); err != nil {
		return fmt.Errorf("add a veth pair: %w", err)
	}
	for _, end := range []string{"node", "nowhere"} {
		link, err := netlink.LinkByName(end)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	link, err := netlink.LinkByName("node")
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddress), Mask: net.CIDRMask(30, 32)}}
	if err := netlink.AddrAdd(link, address); err != nil {
		return fmt.Errorf("add %s: %w", nodeAddress, err)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(nodeGateway)}
	if err := netlink.RouteAdd(route); err != nil {
		return fmt.Errorf("add the default route: %w", err)
	}
	// Nobody answers for the gateway; without a neighbour entry a packet would wait seconds for an ARP reply.
	neighbour := &netlink.Neigh{
		LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
		IP: net.ParseIP(nodeGateway), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
	}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("add the gateway's neighbour entry: %w", err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// pickSnapshotter prefers overlayfs, and copies whole layers where the state directory's file system carries no overlay
// (as within a container).
func pickSnapshotter(at paths) string {
	lower, upper, work, merged := at.file("probe", "l"), at.file("probe", "u"), at.file("probe", "w"), at.file("probe", "m")
	defer os.RemoveAll(at.file("probe"))
	for _, directory := range []string{lower, upper, work, merged} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return "native"
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := syscall.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "native"
	}
	_ = syscall.Unmount(merged, 0)
	return "overlayfs"
}
