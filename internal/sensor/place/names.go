package place

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/picosnitch/picosnitch/internal/event"
)

// Names asks what people call a container. The files are those of daemons that run as root, in folders that only root may enter, and are read as far as
// the one name needs it. What a user's own runtime keeps in the user's home is not read.
type Names struct {
	Root string // before the paths: "" but in tests
}

const (
	maxConfig  = 1 << 20 // bytes of a container's description
	maxStorage = 8 << 20 // bytes of the list of all podman containers
	maxEntries = 1 << 14 // names of a folder
	maxName    = 256     // bytes
)

// Name returns the name of the container of p as safe text, "" if it is not known. It may block in a file system.
func (n Names) Name(p *event.Place) string {
	if p.Kind != event.PlaceContainer || p.Owner != "" || !isID(p.Container) {
		return ""
	}
	var name string
	switch p.Runtime {
	case "docker":
		name = n.docker(p.Container)
	case "podman":
		name = n.podman(p.Container)
	case "containerd", "cri-o", "kubernetes":
		if name = n.kubernetes(p.Container); name == "" {
			name = n.nerdctl(p.Container)
		}
	case "":
		name = n.docker(p.Container)
	}
	if len(name) > maxName {
		name = name[:maxName]
		for !utf8.ValidString(name) && len(name) > maxName-utf8.UTFMax {
			name = name[:len(name)-1]
		}
	}
	return event.Text([]byte(name))
}

// docker reads Name of /var/lib/docker/containers/ID/config.v2.json (moby container.Container): "/web".
func (n Names) docker(id string) string {
	for _, dir := range []string{"/var/lib/docker", "/var/snap/docker/common/var-lib-docker"} {
		f, err := open(n.Root + dir + "/containers/" + id + "/config.v2.json")
		if err != nil {
			continue
		}
		var config struct{ Name string }
		err = json.NewDecoder(io.LimitReader(f, maxConfig)).Decode(&config)
		f.Close()
		if err == nil && config.Name != "" {
			return strings.TrimPrefix(config.Name, "/")
		}
	}
	return ""
}

// podman reads the list of containers of containers/storage: [{"id": …, "names": […]}, …].
func (n Names) podman(id string) string {
	for _, driver := range []string{"overlay", "vfs", "btrfs", "zfs"} {
		f, err := open(n.Root + "/var/lib/containers/storage/" + driver + "-containers/containers.json")
		if err != nil {
			continue
		}
		name := listed(io.LimitReader(f, maxStorage), id)
		f.Close()
		if name != "" {
			return name
		}
	}
	return ""
}

func listed(r io.Reader, id string) string {
	d := json.NewDecoder(r)
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return ""
	}
	for d.More() {
		var c struct {
			ID    string
			Names []string
		}
		if d.Decode(&c) != nil {
			return ""
		}
		if c.ID == id && len(c.Names) > 0 {
			return c.Names[0]
		}
	}
	return ""
}

// kubernetes finds NAMESPACE/POD/CONTAINER in the links that the kubelet makes (pkg/kubelet/kuberuntime/legacy.go):
// /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log.
func (n Names) kubernetes(id string) string {
	name := n.find("/var/log/containers", func(entry string) bool { return strings.HasSuffix(entry, "-"+id+".log") })
	part := strings.SplitN(strings.TrimSuffix(name, "-"+id+".log"), "_", 3)
	if len(part) != 3 {
		return ""
	}
	return part[1] + "/" + part[0] + "/" + part[2]
}

// nerdctl has the names as files that hold the id: /var/lib/nerdctl/HASH/names/NAMESPACE/NAME (pkg/namestore).
func (n Names) nerdctl(id string) string {
	files, err := filepath.Glob(n.Root + "/var/lib/nerdctl/*/names/*/*")
	if err != nil || len(files) > maxEntries {
		return ""
	}
	for _, file := range files {
		f, err := open(file)
		if err != nil {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(f, int64(len(id))+1))
		f.Close()
		if err == nil && strings.TrimSpace(string(b)) == id {
			return filepath.Base(file)
		}
	}
	return ""
}

// find returns the first name in a folder that is the right one.
func (n Names) find(dir string, right func(string) bool) string {
	d, err := os.Open(n.Root + dir)
	if err != nil {
		return ""
	}
	defer d.Close() // only read
	for count := 0; count < maxEntries; {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if right(name) {
				return name
			}
		}
		if count += len(names); err != nil {
			return ""
		}
	}
	return ""
}

// open opens a regular file that is not behind a link.
func open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(errNoFile, err, f.Close())
	}
	return f, nil
}

var errNoFile = errors.New("not a regular file")
