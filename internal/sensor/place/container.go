package place

import "strings"

// scope is how a runtime names the scope (systemd driver) or the group (cgroupfs driver) of a container: PREFIX-ID.scope.
type scope struct {
	prefix, runtime string
}

// scopes are the prefixes, with where they are made. The ids are 64 hexadecimal digits everywhere; what has the form
// without being listed is a container of an unknown runtime.
func scopes() []scope {
	return []scope{
		{"docker-", "docker"},             // moby daemon/oci_linux.go: "system.slice:docker:ID"
		{"cri-containerd-", "containerd"}, // containerd internal/cri/server/helpers_linux.go: "SLICE:cri-containerd:ID"
		{"nerdctl-", "containerd"},        // nerdctl pkg/cmd/container/run_cgroup_linux.go: "SLICE:nerdctl:ID"
		{"crio-", "cri-o"},                // cri-o internal/config/cgmgr: CrioPrefix
		{"libpod-payload-", "podman"},     // podman libpod/container_internal_linux.go, --cgroups=split
		{"libpod-", "podman"},             // podman libpod/container_internal_linux.go: "libpod-ID.scope"
		{"kata_", "kata"},                 // kata-containers src/runtime/pkg/resourcecontrol
	}
}

// container tells whether a name is that of a container's group: the runtime and the id.
func container(r *reading, name, next string) (runtime, id string, ok bool) {
	bare := strings.TrimSuffix(name, ".scope")
	switch {
	// What watches a container runs on this machine and not in it.
	case strings.HasPrefix(bare, "crio-conmon-"), strings.HasPrefix(bare, "libpod-conmon-"), strings.HasPrefix(bare, "lxc.monitor"):
		return "", "", false
	case isID(bare):
		return r.parent(), bare, true
	}
	// containerd told to use systemd's names without systemd: kubepods-…-podUID.slice:cri-containerd:ID.
	if i := strings.LastIndexByte(bare, ':'); i >= 0 && isID(bare[i+1:]) {
		before := bare[:i]
		if j := strings.LastIndexByte(before, ':'); j >= 0 {
			before = before[j+1:]
		}
		return named(before + "-"), bare[i+1:], true
	}
	if i := len(bare) - idLen; i > 0 && (bare[i-1] == '-' || bare[i-1] == '_') && isID(bare[i:]) {
		if runtime := named(bare[:i]); runtime != "" {
			return runtime, bare[i:], true
		}
		return "", bare[i:], true
	}
	return machine(r, name, next)
}

// machine tells the containers whose groups carry a name that people gave.
func machine(r *reading, name, next string) (runtime, id string, ok bool) {
	// lxc 4 and later: lxc.payload.NAME; lxc 3 had it as a folder, versions before that, and Proxmox, /lxc/NAME
	// (lxc src/lxc/cgroups/cgfsng.c).
	if id, ok := strings.CutPrefix(name, "lxc.payload."); ok && id != "" {
		return "lxc", id, true
	}
	if r.above == "lxc.payload" || r.above == "lxc" && name != "" && r.aboveTwo == "" {
		return "lxc", name, true
	}
	// systemd-nspawn@.service runs the container below it in payload, and itself in supervisor (systemd
	// src/nspawn/nspawn-cgroup.c).
	if id, ok := cut(name, "systemd-nspawn@", ".service"); ok && next == "payload" {
		return "nspawn", unescape(id), true
	}
	// systemd-machined: machine-NAME.scope (src/machine/machine-dbus.c); libvirt names its guests DRIVER-NUMBER-NAME.
	if id, ok := cut(name, "machine-", ".scope"); ok && r.above == "machine.slice" && next != "supervisor" {
		id = unescape(id)
		if driver, rest, ok := strings.Cut(id, "-"); ok && (driver == "qemu" || driver == "lxc") {
			if number, guest, ok := strings.Cut(rest, "-"); ok && decimal(number) && guest != "" {
				return "libvirt", guest, true
			}
		}
		return "nspawn", id, true
	}
	// BuildKit inside of dockerd: /docker/buildkit/ID, or below system.slice:docker:ID (moby builder/builder-next).
	if r.above == "buildkit" && len(name) == 25 && strings.Trim(name, "0123456789abcdefghijklmnopqrstuvwxyz") == "" {
		return "buildkit", name, true
	}
	return "", "", false
}

// parent is the runtime as far as the groups above a bare id tell it.
func (r *reading) parent() string {
	switch {
	case r.above == "docker" || r.above == "actions_job":
		return "docker" // moby: the default parent of the cgroupfs driver; GitHub's runner sets another
	case r.aboveTwo == "ecs":
		return "docker" // Amazon ECS: /ecs/TASK/ID
	case r.above == "libpod_parent" || r.above == "podman":
		return "podman"
	case r.pod:
		return "kubernetes" // the group does not tell which runtime the kubelet talks to
	case r.above == "default" || r.above == "k8s.io":
		return "containerd" // /NAMESPACE/ID
	}
	return ""
}

func named(prefix string) string {
	for _, s := range scopes() {
		if prefix == s.prefix {
			return s.runtime
		}
	}
	return ""
}

const idLen = 64

func isID(s string) bool {
	return len(s) == idLen && strings.Trim(s, "0123456789abcdef") == ""
}

// isPod reports whether a name is one of Kubernetes' groups (pkg/kubelet/cm): kubepods, kubepods.slice,
// kubelet-kubepods.slice, kubepods-burstable-podUID.slice, podUID below kubepods.
func isPod(name string) bool {
	return strings.HasPrefix(name, "kubepods") || strings.HasPrefix(name, "kubelet-kubepods")
}

// podUID is the uid in the name of a pod's slice. The systemd driver writes '_' for '-'.
func podUID(name string) string {
	name, _, _ = strings.Cut(name, ".slice")
	i := strings.LastIndex(name, "-pod")
	if i < 0 {
		return ""
	}
	return uid(name[i+len("-pod"):])
}

// uid is a pod's: a UUID, or 32 hexadecimal digits for a pod from a file of the kubelet.
func uid(s string) string {
	s = strings.ReplaceAll(s, "_", "-")
	if len(s) < 32 || len(s) > 36 || strings.Trim(s, "0123456789abcdef-") != "" {
		return ""
	}
	return s
}
