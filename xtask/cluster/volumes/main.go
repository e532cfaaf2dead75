// Command volumes gives the cluster's claims volumes: directories on the machine's disk, which all nodes see. Such a
// volume belongs to one node all the same, as a node's own disk would.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

// name is what StorageClasses call us.
const name = "ferrovirt.io/cluster-volumes"

type directories struct{ root string }

// Provision makes an empty directory. Pods' groups get into it by the kubelet, as fsGroup has it.
func (d directories) Provision(_ context.Context, options controller.ProvisionOptions) (*v1.PersistentVolume, controller.ProvisioningState, error) {
	if mode := options.PVC.Spec.VolumeMode; mode != nil && *mode != v1.PersistentVolumeFilesystem {
		return nil, controller.ProvisioningFinished, fmt.Errorf("volumeMode %s is not supported; use Filesystem", *mode)
	}
	if options.SelectedNodeName == "" {
		return nil, controller.ProvisioningFinished, fmt.Errorf("no node is selected; the StorageClass needs volumeBindingMode WaitForFirstConsumer")
	}
	path := filepath.Join(d.root, options.PVName)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	volume := &v1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: v1.PersistentVolumeSpec{
			AccessModes:                   options.PVC.Spec.AccessModes,
			Capacity:                      v1.ResourceList{v1.ResourceStorage: options.PVC.Spec.Resources.Requests[v1.ResourceStorage]},
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			PersistentVolumeSource:        v1.PersistentVolumeSource{Local: &v1.LocalVolumeSource{Path: path}},
			NodeAffinity: &v1.VolumeNodeAffinity{Required: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{
				MatchExpressions: []v1.NodeSelectorRequirement{{
					Key: v1.LabelHostname, Operator: v1.NodeSelectorOpIn, Values: []string{options.SelectedNodeName},
				}},
			}}}},
		},
	}
	return volume, controller.ProvisioningFinished, nil
}

// Delete removes the directory, and nothing that is not one of ours.
func (d directories) Delete(_ context.Context, volume *v1.PersistentVolume) error {
	if volume.Spec.Local == nil || filepath.Dir(volume.Spec.Local.Path) != filepath.Clean(d.root) {
		return fmt.Errorf("%s is not a directory in %s", volume.Name, d.root)
	}
	return os.RemoveAll(volume.Spec.Local.Path)
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "how to reach the API server")
	root := flag.String("directory", "", "where the volumes are")
	flag.Parse()
	if !filepath.IsAbs(*root) {
		log.Fatalf("--directory needs an absolute path, not %q", *root)
	}
	if err := os.MkdirAll(*root, 0o755); err != nil {
		log.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		log.Fatalf("cannot use the kubeconfig %s: %v", *kubeconfig, err)
	}
	config.UserAgent = "volumes"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		log.Fatalf("cannot make a client from %s: %v", *kubeconfig, err)
	}
	ctx := context.Background()
	controller.NewProvisionController(
		ctx, client, name, directories{*root},
		controller.LeaderElection(false), controller.Threadiness(1),
	).Run(ctx)
}
