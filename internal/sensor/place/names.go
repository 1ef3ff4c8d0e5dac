package place

import (
	"encoding/json"
	"errors"
	"fmt"
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

// Name returns the name of the container of p as safe text, "" if it is not known. The error says what was there and could not be read or understood;
// that an engine keeps no such file is none. It may block in a file system.
func (n Names) Name(p *event.Place) (string, error) {
	if p.Kind != event.PlaceContainer || p.Owner != "" || !isID(p.Container) {
		return "", nil
	}
	var name string
	var err error
	switch p.Runtime {
	case "docker", "":
		name, err = n.docker(p.Container)
	case "podman":
		name, err = n.podman(p.Container)
	case "containerd", "cri-o", "kubernetes":
		if name, err = n.kubernetes(p.Container); name == "" {
			var other error
			name, other = n.nerdctl(p.Container)
			err = errors.Join(err, other)
		}
	}
	if name == "" {
		return "", err
	}
	if len(name) > maxName {
		name = name[:maxName]
		for !utf8.ValidString(name) && len(name) > maxName-utf8.UTFMax {
			name = name[:len(name)-1]
		}
	}
	return event.Text([]byte(name)), nil
}

// missing leaves out that there is no such file, which is how an engine that is not there looks.
func missing(err error) error {
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return err
}

// docker reads Name of /var/lib/docker/containers/ID/config.v2.json (moby container.Container): "/web".
func (n Names) docker(id string) (string, error) {
	var errs []error
	for _, dir := range []string{"/var/lib/docker", "/var/snap/docker/common/var-lib-docker"} {
		path := dir + "/containers/" + id + "/config.v2.json"
		f, err := open(n.Root + path)
		if err != nil {
			errs = append(errs, missing(err))
			continue
		}
		var config struct{ Name string }
		err = json.NewDecoder(io.LimitReader(f, maxConfig)).Decode(&config)
		f.Close()
		if err == nil && config.Name != "" {
			return strings.TrimPrefix(config.Name, "/"), nil
		}
		errs = append(errs, notUnderstood(path, err))
	}
	return "", errors.Join(errs...)
}

// notUnderstood is for a file that is there. Half of it may be: it is asked for again.
func notUnderstood(path string, err error) error {
	if err == nil {
		err = errNoName
	}
	return fmt.Errorf("%s: %w", path, err)
}

var errNoName = errors.New("it holds no name")

// podman reads the list of containers of containers/storage: [{"id": …, "names": […]}, …].
func (n Names) podman(id string) (string, error) {
	var errs []error
	for _, driver := range []string{"overlay", "vfs", "btrfs", "zfs"} {
		path := "/var/lib/containers/storage/" + driver + "-containers/containers.json"
		f, err := open(n.Root + path)
		if err != nil {
			errs = append(errs, missing(err))
			continue
		}
		name, err := listed(io.LimitReader(f, maxStorage), id)
		f.Close()
		if name != "" {
			return name, nil
		}
		if err != nil {
			errs = append(errs, notUnderstood(path, err))
		}
	}
	return "", errors.Join(errs...)
}

func listed(r io.Reader, id string) (string, error) {
	d := json.NewDecoder(r)
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return "", errors.Join(errNoList, err)
	}
	for d.More() {
		var c struct {
			ID    string
			Names []string
		}
		if err := d.Decode(&c); err != nil {
			return "", err
		}
		if c.ID == id && len(c.Names) > 0 {
			return c.Names[0], nil
		}
	}
	_, err := d.Token() // cut at maxStorage it does not end
	return "", err
}

var errNoList = errors.New("not a list of containers")

// kubernetes finds NAMESPACE/POD/CONTAINER in the links that the kubelet makes (pkg/kubelet/kuberuntime/legacy.go):
// /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log.
func (n Names) kubernetes(id string) (string, error) {
	name, err := n.find("/var/log/containers", func(entry string) bool { return strings.HasSuffix(entry, "-"+id+".log") })
	part := strings.SplitN(strings.TrimSuffix(name, "-"+id+".log"), "_", 3)
	if len(part) != 3 {
		return "", err
	}
	return part[1] + "/" + part[0] + "/" + part[2], nil
}

// nerdctl has the names as files that hold the id: /var/lib/nerdctl/HASH/names/NAMESPACE/NAME (pkg/namestore).
func (n Names) nerdctl(id string) (string, error) {
	files, err := filepath.Glob(n.Root + "/var/lib/nerdctl/*/names/*/*")
	if err != nil {
		return "", err
	}
	if len(files) > maxEntries {
		return "", fmt.Errorf("/var/lib/nerdctl: %w", errMany)
	}
	var errs []error
	for _, file := range files {
		f, err := open(file)
		if err != nil {
			errs = append(errs, missing(err))
			continue
		}
		b, err := io.ReadAll(io.LimitReader(f, int64(len(id))+1))
		f.Close()
		if err == nil && strings.TrimSpace(string(b)) == id {
			return filepath.Base(file), nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

var errMany = errors.New("too many names to look through")

// find returns the first name in a folder that is the right one.
func (n Names) find(dir string, right func(string) bool) (string, error) {
	d, err := os.Open(n.Root + dir)
	if err != nil {
		return "", missing(err)
	}
	defer d.Close() // only read
	for count := 0; count < maxEntries; {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if right(name) {
				return name, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return "", nil
		}
		if count += len(names); err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("%s: %w", dir, errMany)
}

// open opens a regular file that is not behind a link.
func open(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errors.Join(errNoFile, err, f.Close()))
	}
	return f, nil
}

var errNoFile = errors.New("not a regular file")
