// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// flagKeys are the settings that have a flag: those one wants to change for a
// single call.
var flagKeys = []struct{ flag, path, usage string }{
	{"listen", "exporter.listen", "serve metrics and JSON on this `address`, \"\" for none"},
	{"socket", "exporter.socket", "`path` of the daemon's unix socket, \"\" for none"},
	{"log-level", "log.level", "least `level` to log: debug, info, warn or error"},
	{"log-format", "log.format", "log as text or json"},
	{"pin-path", "bpf.pin_path", "`directory` in a bpffs where the counters are pinned"},
}

// BindFlags adds the flags --listen, --socket, --log-level, --log-format and
// --pin-path.
func BindFlags(flags *pflag.FlagSet) {
	for _, f := range flagKeys {
		k, _ := keyAt(f.path)
		flags.String(f.flag, k.value.(string), f.usage)
	}
}

// Load reads the configuration: the flags that were given win over environment
// variables, those over the file, and it over the defaults. The environment
// variable of exporter.listen is NETTALLY_EXPORTER_LISTEN, and so on; one that is
// set but empty counts, and a list is separated by commas. A variable that looks like
// one of these and belongs to no key is a problem; see [unknownVariables].
//
// A missing file is as good as an empty one unless it is required; a path of ""
// is no file. The flags may be nil, or lack some or all of those of [BindFlags].
//
// The error has one line per problem, each of which can stand alone: it says where
// the value came from and what was expected.
//
// A program of a notifier that others can change is a problem, too.
func Load(path string, required bool, flags *pflag.FlagSet) (*Config, error) {
	return (&source{file: path, flags: flags}).load(required)
}

// LoadForClient reads some keys, for commands that only ask a running nettally, which any user
// may run. Whatever is wrong with the others is the daemon's to say, which may run on with
// what was there before; their values in the Config mean nothing. The file is read if flags
// and environment lack a key. One that this user can't read is as good as none unless it is
// required.
func LoadForClient(path string, required bool, flags *pflag.FlagSet, keys ...string) (*Config, error) {
	needs := func(path string) bool {
		return slices.ContainsFunc(keys, func(key string) bool { return key == path || strings.HasPrefix(key, path+".") })
	}
	s := &source{file: path, flags: flags, needs: needs}
	if !slices.ContainsFunc(keys, func(key string) bool { return s.given(key) == "" }) {
		s.file, required = "", false
	}
	config, err := s.load(required)
	if errors.Is(err, fs.ErrPermission) && !required {
		return (&source{flags: flags, needs: needs}).load(false)
	}
	return config, err
}

// LoadForDetach is [Load] without what has nothing to do with what nettally has put on the
// host: quotas, notifiers, names, metrics and the log. A mistake there keeps nobody from
// taking it off.
func LoadForDetach(path string, required bool, flags *pflag.FlagSet) (*Config, error) {
	others := []string{"quotas", "notifiers", "names", "metrics", "log"}
	return (&source{file: path, flags: flags, needs: func(path string) bool {
		section, _, _ := strings.Cut(general(path), ".")
		return !slices.Contains(others, strings.TrimSuffix(section, "[]"))
	}}).load(required)
}

func (s *source) load(required bool) (*Config, error) {
	text, err := read(s.file, required)
	if err != nil {
		return nil, err
	}
	s.Viper = viper.New()
	values, problems := parse(s.file, text, s.needed)
	s.problems = problems
	if s.needs == nil {
		s.problems = append(s.problems, unknownVariables(os.Environ())...)
	}
	settings, err := s.merge(values)
	if err != nil {
		return nil, fmt.Errorf("merge config %s: %w", s.file, err)
	}
	config := s.check(settings)
	config.digest = digestOf(text)
	if text != nil {
		config.file = s.file
	}
	if err := errors.Join(s.problems...); err != nil {
		return nil, err
	}
	return config, nil
}

// source is where settings come from. It lives as long as one Load.
type source struct {
	*viper.Viper
	file     string
	flags    *pflag.FlagSet         // may be nil
	needs    func(path string) bool // which keys and sections matter; nil: all
	problems []error
}

// needed reports whether a key or a section matters.
func (s *source) needed(path string) bool { return s.needs == nil || s.needs(path) }

// merge brings defaults, file, environment and flags together.
func (s *source) merge(file map[string]any) (raw, error) {
	s.AllowEmptyEnv(true)
	for _, k := range keys {
		if _, ok := k.value.(items); ok {
			continue
		}
		s.SetDefault(k.path, k.value)
		if err := s.BindEnv(k.path, envName(k.path)); err != nil {
			return raw{}, err
		}
		if flag := s.flag(k.path); flag != nil {
			if err := s.BindPFlag(k.path, flag); err != nil {
				return raw{}, err
			}
		}
	}
	var settings raw
	if err := settings.readItems(file); err != nil {
		return raw{}, err
	}
	if err := s.MergeConfigMap(file); err != nil {
		return raw{}, err
	}
	s.readNumbers()

	err := s.UnmarshalExact(&settings, viper.DecodeHook(splitLists), func(c *mapstructure.DecoderConfig) {
		c.TagName = "yaml"
		c.WeaklyTypedInput = false
	})
	return settings, err
}

// readItems takes the lists of sections out of a file.
func (r *raw) readItems(file map[string]any) error {
	for name, into := range map[string]any{"quotas": &r.Quotas, "notifiers": &r.Notifiers} {
		decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{TagName: "yaml", ErrorUnused: true, Result: into})
		if err != nil {
			return err
		}
		if err := decoder.Decode(file[name]); err != nil {
			return err
		}
		delete(file, name)
	}
	return nil
}

// readNumbers makes numbers of what came as text, from the environment.
func (s *source) readNumbers() {
	for _, k := range keys {
		text, isText := s.Get(k.path).(string)
		if !isText {
			continue
		}
		var number any
		var err error
		switch k.value.(type) {
		case int:
			number, err = strconv.Atoi(text)
		case float64:
			number, err = strconv.ParseFloat(text, 64)
		default:
			continue
		}
		if err != nil {
			s.report(k.path, "", text, nil)
			number = k.value
		}
		s.Set(k.path, number)
	}
}

// splitLists makes lists of what came as text, from the environment.
func splitLists(_, to reflect.Type, data any) (any, error) {
	text, isText := data.(string)
	if !isText || to.Kind() != reflect.Slice {
		return data, nil
	}
	list := []string{}
	if text == "" {
		return list, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		list = append(list, strings.TrimSpace(item))
	}
	return list, nil
}

// flag returns the flag that can set a key, or nil.
func (s *source) flag(path string) *pflag.Flag {
	for _, f := range flagKeys {
		if f.path == path && s.flags != nil {
			return s.flags.Lookup(f.flag)
		}
	}
	return nil
}

// given returns the flag or the variable that sets a key, or "".
func (s *source) given(path string) string {
	if flag := s.flag(path); flag != nil && flag.Changed {
		return "--" + flag.Name
	}
	if _, set := os.LookupEnv(envName(path)); set {
		return envName(path)
	}
	return ""
}

// report notes that a setting has a value that it can't have. A cause adds what
// the expectation does not say.
func (s *source) report(path, index, got string, cause error) {
	if !s.needed(path) {
		return
	}
	k, _ := keyAt(path)
	where := cmp.Or(s.given(path), s.file+": "+path+index)
	problem := fmt.Errorf("%s: expected %s, got %q", where, k.want, got)
	if cause != nil && !errors.Is(cause, errUnfit) {
		problem = fmt.Errorf("%w (%w)", problem, cause)
	}
	s.problems = append(s.problems, problem)
}
