package place

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/picosnitch/picosnitch/internal/event"
)

const (
	id  = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
	id2 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
)

// TestShapes has every shape of a path that is known of these runtimes, with where it is made or was seen.
func TestShapes(t *testing.T) {
	t.Parallel()
	docker := func(p event.Place) event.Place {
		p.Kind, p.Container = event.PlaceContainer, id
		if p.Runtime == "" {
			p.Runtime = "docker"
		}
		return p
	}
	for _, c := range []struct {
		name, path string
		want       event.Place
	}{
		{"nothing", "", event.Place{}},
		{"root", "/", event.Place{}},
		{"slice only", "/system.slice", event.Place{}},
		// systemd: systemd.unit(5), systemd.slice(5), docs/CGROUP_DELEGATION.md.
		{"service", "/system.slice/nginx.service", event.Place{Kind: event.PlaceService, Unit: "nginx.service"}},
		{"instance", "/system.slice/system-getty.slice/getty@tty1.service", event.Place{Kind: event.PlaceService, Unit: "getty@tty1.service"}},
		{"escaped instance", `/system.slice/system-systemd\x2dfsck.slice/systemd-fsck@dev-sda1.service`, event.Place{Kind: event.PlaceService, Unit: "systemd-fsck@dev-sda1.service"}},
		{"delegated", "/system.slice/containerd.service/runtime", event.Place{Kind: event.PlaceService, Unit: "containerd.service"}},
		{"systemd itself", "/init.scope", event.Place{Kind: event.PlaceService, Unit: "init.scope"}},
		{"session", "/user.slice/user-1000.slice/session-3.scope", event.Place{Kind: event.PlaceSession, Unit: "session-3.scope", Session: "3"}},
		{"session of a greeter", "/user.slice/user-42.slice/session-c1.scope", event.Place{Kind: event.PlaceSession, Unit: "session-c1.scope", Session: "c1"}},
		{"user service", "/user.slice/user-1000.slice/user@1000.service/app.slice/syncthing.service", event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: "syncthing.service"}},
		{"user's systemd", "/user.slice/user-1000.slice/user@1000.service/init.scope", event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: "init.scope"}},
		{"root's own", "/user.slice/user-0.slice/user@0.service/app.slice/a.service", event.Place{Kind: event.PlaceUser, Unit: "user@0.service", Owner: "0", UserUnit: "a.service"}},
		{"older user service", "/user.slice/user-1000.slice/user@1000.service/dbus.service", event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: "dbus.service"}},
		{"openrc", "/openrc.sshd", event.Place{Kind: event.PlaceService, Unit: "sshd"}},
		// systemd.io/DESKTOP_ENVIRONMENTS, "XDG standardization for applications".
		{"desktop scope", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-org.gnome.Terminal-2345.scope", event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: "app-gnome-org.gnome.Terminal-2345.scope", App: "org.gnome.Terminal"}},
		{"desktop scope, escaped", `/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-visual\x2dstudio\x2dcode-17.scope`, event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: `app-gnome-visual\\x2dstudio\\x2dcode-17.scope`, App: "visual-studio-code"}},
		{"desktop service", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.kde.konsole@0f3c.service", event.Place{Kind: event.PlaceUser, Unit: "user@1000.service", Owner: "1000", UserUnit: "app-org.kde.konsole@0f3c.service", App: "org.kde.konsole"}},
		// flatpak common/flatpak-run.c: app-flatpak-ID-PID.scope since 1.9.1, flatpak-ID-PID.scope before.
		{"flatpak", "/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.mozilla.firefox-2891.scope", event.Place{Kind: event.PlaceApp, Unit: "user@1000.service", Owner: "1000", UserUnit: "app-flatpak-org.mozilla.firefox-2891.scope", Runtime: "flatpak", App: "org.mozilla.firefox"}},
		{"flatpak, old", "/user.slice/user-1000.slice/user@1000.service/flatpak-org.gnome.gedit-77.scope", event.Place{Kind: event.PlaceApp, Unit: "user@1000.service", Owner: "1000", UserUnit: "flatpak-org.gnome.gedit-77.scope", Runtime: "flatpak", App: "org.gnome.gedit"}},
		// snapd sandbox/cgroup/tracking.go and naming.SecurityTag.
		{"snap app", "/user.slice/user-1000.slice/user@1000.service/app.slice/snap.firefox.firefox-2f1d5a0e-93c8-4b1e-8f7e-0b1f2a3c4d5e.scope", event.Place{Kind: event.PlaceApp, Unit: "user@1000.service", Owner: "1000", UserUnit: "snap.firefox.firefox-2f1d5a0e-93c8-4b1e-8f7e-0b1f2a3c4d5e.scope", Runtime: "snap", App: "firefox"}},
		{"snap app of another name", "/user.slice/user-1000.slice/user@1000.service/app.slice/snap.libreoffice.writer-2f1d5a0e-93c8-4b1e-8f7e-0b1f2a3c4d5e.scope", event.Place{Kind: event.PlaceApp, Unit: "user@1000.service", Owner: "1000", UserUnit: "snap.libreoffice.writer-2f1d5a0e-93c8-4b1e-8f7e-0b1f2a3c4d5e.scope", Runtime: "snap", App: "libreoffice.writer"}},
		{"snap service", "/system.slice/snap.lxd.daemon.service", event.Place{Kind: event.PlaceApp, Unit: "snap.lxd.daemon.service", Runtime: "snap", App: "lxd.daemon"}},
		{"snap with a dash", "/system.slice/snap.canonical-livepatch.canonical-livepatchd.service", event.Place{Kind: event.PlaceApp, Unit: "snap.canonical-livepatch.canonical-livepatchd.service", Runtime: "snap", App: "canonical-livepatch.canonical-livepatchd"}},
		// moby daemon/oci_linux.go (withCgroups): "system.slice:docker:ID" with systemd, "/docker/ID" without.
		{"docker, systemd", "/system.slice/docker-" + id + ".scope", docker(event.Place{Unit: "docker-" + id + ".scope"})},
		{"docker, cgroupfs", "/docker/" + id, docker(event.Place{})},
		{"docker, old Debian", "/" + id, event.Place{Kind: event.PlaceContainer, Container: id}},
		{"docker, own parent", "/actions_job/" + id, docker(event.Place{})},
		{"docker, own slice", "/my.slice/docker-" + id + ".scope", docker(event.Place{Unit: "docker-" + id + ".scope"})},
		{"docker, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + id + ".scope", docker(event.Place{Unit: "user@1000.service", Owner: "1000", UserUnit: "docker-" + id + ".scope"})},
		{"docker, systemd inside", "/system.slice/docker-" + id + ".scope/system.slice/nginx.service", docker(event.Place{Unit: "docker-" + id + ".scope"})},
		{"docker in docker", "/docker/" + id + "/docker/" + id2, docker(event.Place{})},
		{"docker, Amazon ECS", "/ecs/8d5b1a5c-2f6c-4d9a-9c1c-1c0a3f6b7e11/" + id, docker(event.Place{})},
		{"docker, Amazon ECS, systemd", "/ecstasks.slice/ecstasks-8d5b1a5c2f6c4d9a.slice/docker-" + id + ".scope", docker(event.Place{Unit: "docker-" + id + ".scope"})},
		{"buildkit", "/docker/buildkit/k3n8zq0v5y1x2w4u6t7s9r0p1", event.Place{Kind: event.PlaceContainer, Runtime: "buildkit", Container: "k3n8zq0v5y1x2w4u6t7s9r0p1"}},
		{"the daemon itself", "/system.slice/docker.service", event.Place{Kind: event.PlaceService, Unit: "docker.service"}},
		// podman libpod/container_internal_linux.go (getOCICgroupPath), crun adds "container".
		{"podman", "/machine.slice/libpod-" + id + ".scope/container", docker(event.Place{Runtime: "podman", Unit: "libpod-" + id + ".scope"})},
		{"podman, old", "/machine.slice/libpod-" + id + ".scope", docker(event.Place{Runtime: "podman", Unit: "libpod-" + id + ".scope"})},
		{"podman, cgroupfs", "/libpod_parent/libpod-" + id, docker(event.Place{Runtime: "podman"})},
		{"podman, pod", "/machine.slice/machine-libpod_pod_" + id2 + ".slice/libpod-" + id + ".scope", docker(event.Place{Runtime: "podman", Unit: "libpod-" + id + ".scope"})},
		{"podman, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope/container", docker(event.Place{Runtime: "podman", Unit: "user@1000.service", Owner: "1000", UserUnit: "libpod-" + id + ".scope"})},
		{"podman, quadlet", "/system.slice/redis.service/libpod-payload-" + id, docker(event.Place{Runtime: "podman", Unit: "redis.service"})},
		{"podman, quadlet, rootless", "/user.slice/user-1000.slice/user@1000.service/app.slice/redis.service/libpod-payload-" + id, docker(event.Place{Runtime: "podman", Unit: "user@1000.service", Owner: "1000", UserUnit: "redis.service"})},
		{"podman, quadlet's conmon", "/system.slice/redis.service/runtime", event.Place{Kind: event.PlaceService, Unit: "redis.service"}},
		{"podman's conmon", "/machine.slice/libpod-conmon-" + id + ".scope", event.Place{Kind: event.PlaceService, Unit: "libpod-conmon-" + id + ".scope"}},
		// containerd internal/cri/server/helpers_linux.go (getCgroupsPath); nerdctl pkg/cmd/container.
		{"containerd, Kubernetes", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-" + id + ".scope", docker(event.Place{Runtime: "containerd", Unit: "cri-containerd-" + id + ".scope", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"containerd, guaranteed pod", "/kubepods.slice/kubepods-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-" + id + ".scope", docker(event.Place{Runtime: "containerd", Unit: "cri-containerd-" + id + ".scope", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"containerd, kubelet of kind", "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-" + id + ".scope", docker(event.Place{Runtime: "containerd", Unit: "cri-containerd-" + id + ".scope", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"containerd, without SystemdCgroup", "/system.slice/containerd.service/kubepods-burstable-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice:cri-containerd:" + id, docker(event.Place{Runtime: "containerd", Unit: "containerd.service", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"Kubernetes, cgroupfs", "/kubepods/burstable/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/" + id, docker(event.Place{Runtime: "kubernetes", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"Kubernetes, pod from a file", "/kubepods/besteffort/pod0ae5c03cd7d2c7f0e8a0a1b2c3d4e5f6/" + id, docker(event.Place{Runtime: "kubernetes", Pod: "0ae5c03cd7d2c7f0e8a0a1b2c3d4e5f6"})},
		{"Kubernetes, docker", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podb0b7632a2_a56e_4278_987a_22de18008dbe.slice/docker-" + id + ".scope", docker(event.Place{Unit: "docker-" + id + ".scope"})}, // 37 digits are no uid
		{"nerdctl", "/system.slice/nerdctl-" + id + ".scope", docker(event.Place{Runtime: "containerd", Unit: "nerdctl-" + id + ".scope"})},
		{"nerdctl, cgroupfs", "/default/" + id, docker(event.Place{Runtime: "containerd"})},
		// cri-o internal/config/cgmgr: crio-ID.scope, crio-conmon-ID.scope.
		{"cri-o", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/crio-" + id + ".scope", docker(event.Place{Runtime: "cri-o", Unit: "crio-" + id + ".scope", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"cri-o, cgroupfs", "/kubepods/besteffort/pod72f7f152-440c-66ac-9084-e0fc1d8a910c/crio-" + id, docker(event.Place{Runtime: "cri-o", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"})},
		{"cri-o's conmon", "/kubepods.slice/kubepods-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/crio-conmon-" + id + ".scope", event.Place{Kind: event.PlaceService, Unit: "crio-conmon-" + id + ".scope", Pod: "72f7f152-440c-66ac-9084-e0fc1d8a910c"}},
		{"a runtime that is not known", "/system.slice/newthing-" + id + ".scope", event.Place{Kind: event.PlaceContainer, Container: id, Unit: "newthing-" + id + ".scope"}},
		// lxc src/lxc/cgroups/cgfsng.c; lxc 3; Proxmox VE.
		{"lxc", "/lxc.payload.web", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "web"}},
		{"lxc, systemd inside", "/lxc.payload.web/system.slice/nginx.service", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "web"}},
		{"lxc, incus project", "/lxc.payload.user-1000_web", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "user-1000_web"}},
		{"lxc 3", "/lxc.payload/web", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "web"}},
		{"lxc 2, Proxmox", "/lxc/101/ns/system.slice/cron.service", event.Place{Kind: event.PlaceContainer, Runtime: "lxc", Container: "101"}},
		{"lxc's monitor", "/lxc.monitor.web", event.Place{}},
		// systemd src/nspawn/nspawn-cgroup.c, src/machine/machine-dbus.c.
		{"nspawn", "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service", event.Place{Kind: event.PlaceContainer, Runtime: "nspawn", Container: "web", Unit: "systemd-nspawn@web.service"}},
		{"nspawn's own process", "/machine.slice/systemd-nspawn@web.service/supervisor", event.Place{Kind: event.PlaceService, Unit: "systemd-nspawn@web.service"}},
		{"nspawn by hand", `/machine.slice/machine-deb\x2d12.scope/payload`, event.Place{Kind: event.PlaceContainer, Runtime: "nspawn", Container: "deb-12", Unit: `machine-deb\\x2d12.scope`}},
		// libvirt src/util/virsystemd.c: machine-DRIVER-NUMBER-NAME.scope.
		{"libvirt", `/machine.slice/machine-qemu\x2d3\x2dwin11.scope/libvirt/emulator`, event.Place{Kind: event.PlaceContainer, Runtime: "libvirt", Container: "win11", Unit: `machine-qemu\x2d3\x2dwin11.scope`}},
		// Whoever may make groups chooses names.
		{"a user's claim", "/user.slice/user-1000.slice/user@1000.service/docker-" + id + ".scope", docker(event.Place{Unit: "user@1000.service", Owner: "1000", UserUnit: "docker-" + id + ".scope"})},
		{"a container's claim", "/docker/" + id + "/system.slice/docker-" + id2 + ".scope", docker(event.Place{})},
		{"a container's claim to be a session", "/docker/" + id + "/user.slice/user-0.slice/session-1.scope", docker(event.Place{})},
		{"a session where none can be", "/system.slice/evil.service/user.slice/user-0.slice/session-1.scope", event.Place{Kind: event.PlaceService, Unit: "evil.service"}},
		{"a user where none can be", "/x/user.slice/user-0.slice/user@0.service/a.service", event.Place{Kind: event.PlaceService, Unit: "user@0.service"}},
		{"another user's systemd", "/user.slice/user-1000.slice/user@0.service/a.service", event.Place{Kind: event.PlaceService, Unit: "user@0.service"}},
		// Text of strangers.
		{"control characters", "/system.slice/a\nb\x1b[31m\xff.service", event.Place{Kind: event.PlaceService, Unit: `a\u{a}b\u{1b}[31m\xff.service`}},
		{"almost an id", "/docker/" + id[1:], event.Place{}},
		{"upper case", "/docker/" + strings.ToUpper(id), event.Place{}},
		{"empty names", "//system.slice//.service/.scope", event.Place{Kind: event.PlaceService, Unit: ".service"}},
		{"only a suffix", "/app-.scope", event.Place{Kind: event.PlaceService, Unit: "app-.scope"}},
		{"only prefixes", "/docker-.scope/libpod-/snap./lxc.payload./app-/openrc.", event.Place{Kind: event.PlaceService, Unit: "docker-.scope"}},
		{"snap without a name", "/snap.-00000000-0000-0000-0000-000000000000.scope", event.Place{Kind: event.PlaceApp, Runtime: "snap", App: "-00000000-0000-0000-0000-000000000000", Unit: "snap.-00000000-0000-0000-0000-000000000000.scope"}},
		{"NUL by escape", `/user.slice/user-1.slice/user@1.service/app-a\x00b-1.scope`, event.Place{Kind: event.PlaceUser, Unit: "user@1.service", Owner: "1", UserUnit: `app-a\\x00b-1.scope`, App: `a\\x00b`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.want.Path = event.Text([]byte(c.path))
			// The raw string in the table is the name of the unit; in the stream its backslashes are doubled.
			if strings.Contains(c.want.Unit, `\x2d`) && !strings.Contains(c.want.Unit, `\\x2d`) {
				c.want.Unit = event.Text([]byte(c.want.Unit))
			}
			if diff := cmp.Diff(c.want, Of(c.path)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", c.path, diff)
			}
		})
	}
}

func TestLongPath(t *testing.T) {
	t.Parallel()
	deep := strings.Repeat("/"+strings.Repeat("x", 255), 16)
	if p := Of(deep + "/docker-" + id + ".scope"); p.Container != id || !strings.HasPrefix(p.Path, deep) {
		t.Errorf("%+v", p)
	}
	if p := Of(strings.Repeat("/a", 100000)); p.Kind != "" {
		t.Errorf("%+v", p.Kind)
	}
}

func FuzzOf(f *testing.F) {
	f.Add("/docker/" + id)
	f.Add(`/user.slice/user-1.slice/user@1.service/app-\x\x2-.scope`)
	f.Fuzz(func(t *testing.T, path string) {
		p := Of(path)
		for _, s := range []string{p.Path, p.Unit, p.Owner, p.UserUnit, p.Session, p.Runtime, p.Container, p.Pod, p.App} {
			if event.Text([]byte(strings.ReplaceAll(s, `\`, ""))) != strings.ReplaceAll(s, `\`, "") {
				t.Errorf("%q is not printable", s)
			}
		}
		if (p.Kind == event.PlaceContainer) != (p.Container != "") {
			t.Errorf("%+v", p)
		}
	})
}
