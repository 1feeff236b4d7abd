package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// How often a thing that is waited for is looked at.
const pollInterval = 50 * time.Millisecond

// api is the admin's client of the cluster.
type api struct{ client *kubernetes.Clientset }

func connect(at paths) (*api, error) {
	config, err := clientcmd.BuildConfigFromFlags("", at.file("kubeconfig"))
	if err != nil {
		return nil, err
	}
	config.QPS = -1
	config.Timeout = 5 * time.Second
	client, err := kubernetes.NewForConfig(config)
	return &api{client}, err
}

func (a *api) awaitServer(limit time.Duration) error {
	return await(limit, func(ctx context.Context) error {
		return a.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// awaitNode waits until pods can be placed: a node is tainted until it has been seen Ready.
func (a *api) awaitNode(name string, limit time.Duration) error {
	return await(limit, func(ctx context.Context) error {
		node, err := a.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("it is tainted: %v", node.Spec.Taints[0].Key)
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
				return nil
			} else if condition.Type == corev1.NodeReady {
				return fmt.Errorf("it says: %s", condition.Message)
			}
		}
		return fmt.Errorf("it has no Ready condition yet")
	})
}

// awaitServiceAccount waits for what every pod needs and the controllers make a moment after the API server is ready.
func (a *api) awaitServiceAccount(limit time.Duration) error {
	return await(limit, func(ctx context.Context) error {
		if _, err := a.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{}); err != nil {
			return err
		}
		_, err := a.client.CoreV1().ConfigMaps("default").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
}

// createDNSService puts CoreDNS, a process on the node and no pod, behind the address that every pod asks.
func (a *api) createDNSService() error {
	ports := map[string]corev1.Protocol{"dns": corev1.ProtocolUDP, "dns-tcp": corev1.ProtocolTCP}
	service := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "kube-dns", Namespace: metav1.NamespaceSystem},
		Spec:       corev1.ServiceSpec{ClusterIP: dnsService},
	}
	ready := true
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kube-dns", Namespace: metav1.NamespaceSystem,
			Labels: map[string]string{discoveryv1.LabelServiceName: "kube-dns"},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{{
			Addresses: []string{nodeAddress}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
		}},
	}
	for name, protocol := range ports {
		number := int32(53)
		service.Spec.Ports = append(service.Spec.Ports, corev1.ServicePort{
			Name: name, Protocol: protocol, Port: number, TargetPort: intstr.FromInt32(number),
		})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number})
	}
	return await(10*time.Second, func(ctx context.Context) error {
		_, err := a.client.CoreV1().Services(metav1.NamespaceSystem).Create(ctx, service, metav1.CreateOptions{})
		if err != nil && !errors.IsAlreadyExists(err) {
			return err
		}
		_, err = a.client.DiscoveryV1().EndpointSlices(metav1.NamespaceSystem).Create(ctx, slice, metav1.CreateOptions{})
		if err != nil && !errors.IsAlreadyExists(err) {
			return err
		}
		return nil
	})
}

func awaitSocket(path string, limit time.Duration) error {
	return await(limit, func(context.Context) error {
		if _, err := os.Stat(path); err != nil {
			return err
		}
		connection, err := net.Dial("unix", path)
		if err == nil {
			connection.Close()
		}
		return err
	})
}

func awaitPort(address string, limit time.Duration) error {
	return await(limit, func(context.Context) error {
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			connection.Close()
		}
		return err
	})
}

func awaitHTTP(url string, limit time.Duration) error {
	return await(limit, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, response.Status)
		}
		return nil
	})
}

// await repeats a look until it finds what it looks for, or tells what it found last.
func await(limit time.Duration, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", limit, err)
		case <-time.After(pollInterval):
		}
	}
}
