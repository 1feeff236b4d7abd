package main

import (
	"context"
	"errors"
	"log/slog"
	"os"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
	"go.etcd.io/etcd/server/v3/etcdmain"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
	helmkube "helm.sh/helm/v4/pkg/kube"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client metrics
	_ "k8s.io/component-base/metrics/prometheus/version"  // version metric
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeletapp "k8s.io/kubernetes/cmd/kubelet/app"
)

func etcd() { etcdmain.Main(os.Args) }

func kubeAPIServer() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) }

func kubeControllerManager() { os.Exit(cli.Run(controllermanager.NewControllerManagerCommand())) }

func kubeScheduler() { os.Exit(cli.Run(scheduler.NewSchedulerCommand())) }

func kubeProxy() { os.Exit(cli.Run(proxy.NewProxyCommand())) }

func kubelet() { os.Exit(cli.Run(kubeletapp.NewKubeletCommand(context.Background()))) }

// coreDNS has only the plugins imported above: the full set pulls in the SDKs of three clouds.
func coreDNS() {
	dnsserver.Quiet = true
	coremain.Run()
}

func kubectl() {
	// The verbosity flag has to act before the command tree is built, as kubectl's own main does it.
	_, _ = logs.GlogSetter(kubectlcmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectlcmd.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}

func helm() {
	// Without this, the field manager would be the binary's name.
	helmkube.ManagedFieldsManager = "helm"
	command, err := helmcmd.NewRootCmd(os.Stdout, os.Args[1:], helmcmd.SetupLogging)
	if err != nil {
		slog.Warn("helm could not start", slog.Any("error", err))
		os.Exit(1)
	}
	if err := command.Execute(); err != nil {
		var exit helmcmd.CommandError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode)
		}
		os.Exit(1)
	}
}
