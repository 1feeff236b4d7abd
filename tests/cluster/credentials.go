package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// The API server as the node's own programs and the admin reach it. On the loopback, so that a kubeconfig used outside
// the cluster's network fails at once and sends nothing anywhere.
const apiServerURL = "https://127.0.0.1:6443"

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// writeCredentials makes the cluster's certificate authorities, certificates, keys and kubeconfigs, new at each boot.
func writeCredentials(at paths) error {
	cluster, err := newAuthority(at, "ca")
	if err != nil {
		return err
	}
	// The aggregator's clients need an authority of their own: a certificate of it may name any user.
	frontProxy, err := newAuthority(at, "front-proxy-ca")
	if err != nil {
		return err
	}
	if _, err := frontProxy.issue(at, "front-proxy-client", client("front-proxy-client")); err != nil {
		return err
	}
	if _, err := cluster.issue(at, "apiserver", server(
		[]string{
			"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local", at.name,
		},
		"127.0.0.1", nodeAddress, apiService,
	)); err != nil {
		return err
	}
	if _, err := cluster.issue(at, "kubelet-serving", server([]string{at.name}, nodeAddress)); err != nil {
		return err
	}
	if _, err := cluster.issue(at, "apiserver-kubelet-client", client("kube-apiserver-kubelet-client", "system:masters")); err != nil {
		return err
	}
	for file, user := range map[string]x509.Certificate{
		"controller-manager": client("system:kube-controller-manager"),
		"coredns":            client("system:coredns", "system:masters"),
		"kubelet":            client("system:node:"+at.name, "system:nodes"),
		"proxy":              client("system:kube-proxy"),
		"scheduler":          client("system:kube-scheduler"),
	} {
		if err := cluster.writeKubeconfig(at, file, at.file("pki", file+".kubeconfig"), user); err != nil {
			return err
		}
	}
	if err := cluster.writeKubeconfig(at, "admin", at.file("kubeconfig"), client("admin", "system:masters")); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	if err := writeKey(at.file("pki", "service-account.key"), key); err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	return writePEM(at.file("pki", "service-account.pub"), "PUBLIC KEY", public, 0o644)
}

func client(user string, groups ...string) x509.Certificate {
	return x509.Certificate{
		Subject:     pkix.Name{CommonName: user, Organization: groups},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

func server(names []string, addresses ...string) x509.Certificate {
	template := x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		DNSNames:    names,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	return template
}

func newAuthority(at paths, name string) (*authority, error) {
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	key, der, err := sign(template, nil)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, writePair(at, name, key, der)
}

// issue signs a certificate and writes it with its key; it returns the path of both, without their endings.
func (a *authority) issue(at paths, name string, template x509.Certificate) (string, error) {
	template.KeyUsage = x509.KeyUsageDigitalSignature
	key, der, err := sign(&template, a)
	if err != nil {
		return "", err
	}
	return at.file("pki", name), writePair(at, name, key, der)
}

func sign(template *x509.Certificate, by *authority) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	// Backdated against clocks that are set back under a running cluster.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().AddDate(1, 0, 0)
	parent, signer := template, key
	if by != nil {
		parent, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	return key, der, err
}

func (a *authority) writeKubeconfig(at paths, name, file string, user x509.Certificate) error {
	pair, err := a.issue(at, name, user)
	if err != nil {
		return err
	}
	certificate, err := os.ReadFile(pair + ".crt")
	if err != nil {
		return err
	}
	key, err := os.ReadFile(pair + ".key")
	if err != nil {
		return err
	}
	trusted, err := os.ReadFile(at.file("pki", "ca.crt"))
	if err != nil {
		return err
	}
	config := clientcmdapi.NewConfig()
	config.Clusters[at.name] = &clientcmdapi.Cluster{Server: apiServerURL, CertificateAuthorityData: trusted}
	config.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: certificate, ClientKeyData: key}
	config.Contexts[at.name] = &clientcmdapi.Context{Cluster: at.name, AuthInfo: name}
	config.CurrentContext = at.name
	return clientcmd.WriteToFile(*config, file)
}

func writePair(at paths, name string, key *ecdsa.PrivateKey, der []byte) error {
	if err := writePEM(at.file("pki", name+".crt"), "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	return writeKey(at.file("pki", name+".key"), key)
}

func writeKey(file string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(file, "PRIVATE KEY", der, 0o600)
}

func writePEM(file, kind string, der []byte, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
