// SPDX-License-Identifier: Apache-2.0

package top

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/nettally/nettally/internal/view"
)

// Settings are what a user has chosen, and Ctrl-S saves.
type Settings struct {
	Columns []string // names of columns, without that of the container's name, which always is there
	Sort    view.Column
	Reverse bool
	Unit    view.Unit
}

// Defaults returns the settings of a user who has saved none.
func Defaults() Settings {
	s := Settings{Sort: view.ReceiveRate}
	for _, c := range columns {
		if !c.extra {
			s.Columns = append(s.Columns, c.id)
		}
	}
	return s
}

// file is what a file of settings has.
type file struct {
	Columns []string `yaml:"columns,flow"`
	Sort    string   `yaml:"sort"`
	Reverse bool     `yaml:"reverse"`
	Unit    string   `yaml:"unit"`
}

// SettingsPath returns where a user's settings are: nettally/top.yaml in XDG_CONFIG_HOME, or in
// ~/.config.
func SettingsPath() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "nettally", "top.yaml"), nil
}

// longestFile bounds what is read of a file of settings.
const longestFile = 64 << 10

// LoadSettings reads settings. Without a file they are the defaults. With an error they are, too,
// so that a view is there at all.
func LoadSettings(path string) (Settings, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Defaults(), nil
	}
	if err != nil {
		return Defaults(), fmt.Errorf("read settings: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, longestFile))
	if err != nil {
		return Defaults(), fmt.Errorf("read settings: %w", err)
	}
	s, err := parseSettings(text)
	if err != nil {
		return Defaults(), fmt.Errorf("read settings from %s: %w; Ctrl-S writes it anew", path, err)
	}
	return s, nil
}

func parseSettings(text []byte) (Settings, error) {
	defaults := Defaults()
	f := file{Columns: defaults.Columns, Sort: string(defaults.Sort), Unit: defaults.Unit.String()}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return Settings{}, errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	s := Settings{Reverse: f.Reverse}
	var err error
	if s.Sort, err = view.ParseColumn(f.Sort); err != nil {
		return Settings{}, fmt.Errorf("sort: %w", err)
	}
	if s.Unit, err = view.ParseUnit(f.Unit); err != nil {
		return Settings{}, fmt.Errorf("unit: %w", err)
	}
	for _, id := range f.Columns {
		if !slices.ContainsFunc(columns, func(c column) bool { return c.id == id }) {
			return Settings{}, fmt.Errorf("columns: %q is none", id)
		}
	}
	for _, c := range columns { // in the order of the table, each once
		if slices.Contains(f.Columns, c.id) {
			s.Columns = append(s.Columns, c.id)
		}
	}
	return s, nil
}

// Save writes settings to a file, in one step: whoever reads it has the old ones or the new ones.
func (s Settings) Save(path string) error {
	text, err := yaml.Marshal(file{append([]string{}, s.Columns...), string(s.Sort), s.Reverse, s.Unit.String()})
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	f, err := os.CreateTemp(dir, ".top-*.yaml")
	if err != nil {
		return fmt.Errorf("save settings: %w", err)
	}
	_, err = f.Write(append([]byte("# nettally top; Ctrl-S in it writes this file\n"), text...))
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name()) // it is of no use, and the error says why
		return fmt.Errorf("save settings: %w", err)
	}
	return nil
}
