package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
	"github.com/prometheus/prometheus/rules"
	"gopkg.in/yaml.v3"
)

// What of promtool's format of unit tests is used here.
type unitTests struct {
	RuleFiles          []string       `yaml:"rule_files"`
	EvaluationInterval model.Duration `yaml:"evaluation_interval"`
	Tests              []situation    `yaml:"tests"`
}

type situation struct {
	Name        string         `yaml:"name"`
	Interval    model.Duration `yaml:"interval"`
	InputSeries []struct {
		Series string `yaml:"series"`
		Values string `yaml:"values"`
	} `yaml:"input_series"`
	AlertRuleTest []moment `yaml:"alert_rule_test"`
}

type moment struct {
	EvalTime  model.Duration `yaml:"eval_time"`
	Alertname string         `yaml:"alertname"`
	ExpAlerts []struct {
		ExpLabels      map[string]string `yaml:"exp_labels"`
		ExpAnnotations map[string]string `yaml:"exp_annotations"`
	} `yaml:"exp_alerts"`
}

// testAlerts plays each situation of a file through the rules it names.  Besides, each rule has to be seen
// firing and silent.
func testAlerts(path string) []error {
	content, err := os.ReadFile(path)
	if err != nil {
		return []error{err}
	}
	var file unitTests
	decoder := yaml.NewDecoder(strings.NewReader(string(content)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		return []error{err}
	}
	var groups []*rulefmt.RuleGroups
	for _, name := range file.RuleFiles {
		group, problems := rulefmt.ParseFile(filepath.Join(filepath.Dir(path), name), false)
		if len(problems) > 0 {
			return problems
		}
		groups = append(groups, group)
	}
	var found []error
	fired, silent := map[string]bool{}, map[string]bool{}
	for _, situation := range file.Tests {
		for _, problem := range situation.play(groups, time.Duration(file.EvaluationInterval)) {
			found = append(found, fmt.Errorf("%s: %w", situation.Name, problem))
		}
		for _, moment := range situation.AlertRuleTest {
			if len(moment.ExpAlerts) > 0 {
				fired[moment.Alertname] = true
			} else {
				silent[moment.Alertname] = true
			}
		}
	}
	for _, rule := range alerting(groups) {
		if !fired[rule.Name()] || !silent[rule.Name()] {
			found = append(found, fmt.Errorf("%s is not seen both firing and silent", rule.Name()))
		}
	}
	return found
}

// alerting makes the alerting rules of these groups, in nobody's alarm yet.
func alerting(groups []*rulefmt.RuleGroups) (made []*rules.AlertingRule) {
	for _, file := range groups {
		for _, group := range file.Groups {
			for _, rule := range group.Rules {
				expression, err := parser.ParseExpr(rule.Expr)
				if rule.Alert == "" || err != nil { // rulefmt has looked at that
					continue
				}
				made = append(made, rules.NewAlertingRule(
					rule.Alert, expression, time.Duration(rule.For), time.Duration(rule.KeepFiringFor),
					labels.FromMap(rule.Labels), labels.FromMap(rule.Annotations), labels.EmptyLabels(), "",
					true, slog.New(slog.DiscardHandler),
				))
			}
		}
	}
	return made
}

func (s situation) play(groups []*rulefmt.RuleGroups, every time.Duration) (found []error) {
	lines := []string{"load " + s.Interval.String()}
	for _, series := range s.InputSeries {
		lines = append(lines, "  "+series.Series+" "+series.Values)
	}
	loader, err := promqltest.NewLazyLoader(strings.Join(lines, "\n"), promqltest.LazyLoaderOpts{
		EnableAtModifier: true, EnableNegativeOffset: true,
	})
	if err != nil {
		return []error{err}
	}
	defer loader.Close()
	loader.SubqueryInterval = every
	made := alerting(groups)
	query := rules.EngineQueryFunc(loader.QueryEngine(), loader.Storage())
	var last time.Duration
	for _, moment := range s.AlertRuleTest {
		if time.Duration(moment.EvalTime)%every != 0 {
			return []error{fmt.Errorf("nothing is evaluated at %s", moment.EvalTime)}
		}
		last = max(last, time.Duration(moment.EvalTime))
	}
	for passed := time.Duration(0); passed <= last; passed += every {
		now := time.Unix(0, 0).UTC().Add(passed)
		loader.WithSamplesTill(now, func(err error) { found = append(found, errorsOf(err)...) })
		for _, rule := range made {
			if _, err := rule.Eval(loader.Context(), 0, now, query, nil, 0); err != nil {
				return append(found, fmt.Errorf("%s: %w", rule.Name(), err))
			}
		}
		for _, moment := range s.AlertRuleTest {
			if time.Duration(moment.EvalTime) == passed {
				found = append(found, moment.compare(made)...)
			}
		}
	}
	return found
}

func errorsOf(err error) []error {
	if err == nil {
		return nil
	}
	return []error{err}
}

func (m moment) compare(made []*rules.AlertingRule) []error {
	var expected, firing []string
	for _, alert := range m.ExpAlerts {
		told := labels.FromMap(alert.ExpLabels)
		all := labels.NewBuilder(told).Set(labels.AlertName, m.Alertname).Labels()
		expected = append(expected, all.String()+labels.FromMap(alert.ExpAnnotations).String())
	}
	known := false
	for _, rule := range made {
		if rule.Name() != m.Alertname {
			continue
		}
		known = true
		for _, alert := range rule.ActiveAlerts() {
			if alert.State == rules.StateFiring {
				firing = append(firing, alert.Labels.String()+alert.Annotations.String())
			}
		}
	}
	if !known {
		return []error{errors.New("there is no alert " + m.Alertname)}
	}
	slices.Sort(expected)
	slices.Sort(firing)
	if slices.Equal(expected, firing) {
		return nil
	}
	return []error{fmt.Errorf("%s at %s\n  should be %s\n  and is    %s", m.Alertname, m.EvalTime,
		strings.Join(expected, "\n            "), strings.Join(firing, "\n            "))}
}
