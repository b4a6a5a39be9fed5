// What a trace's file holds, after whole steps and after steps that failed.
#include "cpp/engine/step_trace.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cpp/kv/block_pool.h"
#include "cpp/sched/request.h"
#include "forerun/error.h"
#include "tests/cpp/testing/counting_engine.h"

namespace forerun {
namespace {

using Json = nlohmann::json;

class StepTraceTest : public ::testing::Test {
 protected:
  ~StepTraceTest() override { std::filesystem::remove(path_); }

  // The file's spans; the file must be complete JSON.
  std::vector<Json> Spans() const {
    std::ifstream file(path_);
    Json trace = Json::parse(file);
    std::vector<Json> spans;
    for (Json& event : trace.at("traceEvents")) {
      if (event.at("ph") == "X") spans.push_back(std::move(event));
    }
    return spans;
  }

  static std::vector<std::string> NamesOf(const std::vector<Json>& spans) {
    std::vector<std::string> names;
    for (const Json& span : spans) names.push_back(span.at("name"));
    return names;
  }

  StepPlan PlanOf(std::vector<PlannedRequest> requests) const {
    StepPlan plan;
    plan.requests = std::move(requests);
    return plan;
  }

  void RunParts(std::initializer_list<StepPart> parts) {
    trace_.BeginStep();
    for (StepPart part : parts) trace_.BeginPart(part);
  }

  const std::string path_ =
      std::filesystem::path(::testing::TempDir()) /
      ("step_trace_" + std::to_string(getpid()) + "_" +
       ::testing::UnitTest::GetInstance()->current_test_info()->name() + ".json");
  BlockPool pool_{4, 4, false};
  Request request_{7, pool_, 16};
  StepTrace trace_;
};

using enum StepPart;

TEST_F(StepTraceTest, AStepHasASpanForEachPartAndItsCounts) {
  ASSERT_TRUE(trace_.Start(path_, "path"));
  RunParts({kDraft, kPlan});
  trace_.SetPlan(PlanOf({{.request = &request_, .num_pending = 1, .num_draft = 3}}));
  trace_.BeginPart(kForward);
  trace_.BeginPart(kVerify);
  trace_.BeginPart(kCommit);
  trace_.CountCommit(/*num_accepted=*/2, /*num_emitted=*/3);
  trace_.EndStep();
  const std::vector<Json> spans = Spans();
  EXPECT_EQ(NamesOf(spans),
            (std::vector<std::string>{"step", "draft", "plan", "forward", "verify", "commit"}));
  EXPECT_EQ(spans[0]["args"], Json::parse(R"({"step": 1, "requests": [
      {"id": 7, "rows": 4, "draft_tokens": 3, "accepted_tokens": 2, "emitted_tokens": 3}]})"));
  EXPECT_EQ(spans[1]["args"], Json::parse(R"({"draft_tokens": 3})"));
  EXPECT_EQ(spans[2]["args"],
            Json::parse(R"({"requests": 1, "rows": 4, "preempted_requests": 0})"));
  EXPECT_EQ(spans[3]["args"], Json::parse(R"({"rows": 4})"));
  EXPECT_EQ(spans[4]["args"], Json::parse(R"({"draft_tokens": 3, "accepted_tokens": 2})"));
  EXPECT_EQ(spans[5]["args"], Json::parse(R"({"emitted_tokens": 3})"));
}

TEST_F(StepTraceTest, PartsFollowEachOtherWithinTheirStep) {
  trace_.Start(path_, "path");
  for (int i = 0; i < 3; ++i) {
    RunParts({kDraft, kPlan, kForward, kVerify, kCommit});
    trace_.EndStep();
  }
  double end_of_last = 0;
  for (const Json& span : Spans()) {
    const double begin = span["ts"], duration = span["dur"];
    EXPECT_GE(begin, end_of_last - 1e-3);
    EXPECT_GE(duration, 0);
    end_of_last = span["name"] == "step" ? begin : begin + duration;
  }
}

TEST_F(StepTraceTest, AFailedStepEndsWithThePartThatFailed) {
  trace_.Start(path_, "path");
  RunParts({kDraft, kPlan, kForward});
  trace_.EndStep(/*failed=*/true);
  EXPECT_EQ(NamesOf(Spans()), (std::vector<std::string>{"step", "draft", "plan", "forward"}));
  EXPECT_EQ(Spans()[0]["args"]["failed"], true);
  RunParts({kDraft});
  trace_.EndStep();
  EXPECT_EQ(Spans()[4]["args"], Json::parse(R"({"step": 2, "requests": []})"));
}

TEST_F(StepTraceTest, TheFileIsCompleteAfterEveryStep) {
  trace_.Start(path_, "path");
  EXPECT_TRUE(Spans().empty());
  for (std::size_t num_steps = 1; num_steps <= 3; ++num_steps) {
    RunParts({kDraft});
    trace_.EndStep();
    EXPECT_EQ(Spans().size(), 2 * num_steps);
  }
}

TEST_F(StepTraceTest, StepsOutsideATraceAreTimedButNotWritten) {
  RunParts({kDraft, kForward});
  trace_.EndStep();
  EXPECT_GT(trace_.step_seconds(), 0);
  EXPECT_GT(trace_.begin(kForward), 0);
  EXPECT_EQ(trace_.seconds(kVerify), 0);
  const double rounding = 1e-9;
  EXPECT_LE(trace_.seconds(kDraft) + trace_.seconds(kForward), trace_.step_seconds() + rounding);
  EXPECT_FALSE(std::filesystem::exists(path_));

  trace_.Start(path_, "path");
  trace_.Stop();
  RunParts({kDraft});
  trace_.EndStep();
  EXPECT_TRUE(Spans().empty());
}

TEST_F(StepTraceTest, ATraceThatIsOnGoesOn) {
  ASSERT_TRUE(trace_.Start(path_, "path"));
  EXPECT_FALSE(trace_.Start(path_ + ".other", "path"));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".other"));
  RunParts({kDraft});
  trace_.EndStep();
  trace_.Stop();
  trace_.Stop();  // none is on: nothing happens
  EXPECT_EQ(Spans().size(), 2u);
  EXPECT_TRUE(trace_.Start(path_, "path"));
  EXPECT_TRUE(Spans().empty());
}

TEST_F(StepTraceTest, APathThatCannotBeWrittenIsNamed) {
  for (const std::string& path :
       {path_ + "/no/such/folder", ::testing::TempDir(), std::string("/dev/full"), std::string()}) {
    try {
      trace_.Start(path, "FORERUN_TRACE");
      ADD_FAILURE() << path;
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.field(), "FORERUN_TRACE");
      EXPECT_EQ(error.value(), "'" + path + "'");
      EXPECT_NE(error.expected().find("a file that can be written: "), std::string::npos);
    }
  }
  EXPECT_TRUE(trace_.Start(path_, "path"));
}

TEST_F(StepTraceTest, AWriteThatFailsIsReportedWhenTheTraceEnds) {
  trace_.Start(path_, "path");
  auto* const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{};
  getrlimit(RLIMIT_FSIZE, &limit);
  const rlimit full = {std::filesystem::file_size(path_), limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &full);
  RunParts({kDraft});
  trace_.EndStep();
  setrlimit(RLIMIT_FSIZE, &limit);
  std::signal(SIGXFSZ, handler);
  EXPECT_THROW(trace_.Stop(), InvalidArgument);
  EXPECT_TRUE(trace_.Start(path_, "path"));
  RunParts({kDraft});
  trace_.EndStep();
  EXPECT_EQ(Spans().size(), 2u);
}

TEST_F(StepTraceTest, TheChildOfAForkWritesNothingToTheFile) {
  trace_.Start(path_, "path");
  RunParts({kDraft});
  const pid_t child = fork();
  if (child == 0) {
    trace_.EndStep();
    RunParts({kDraft, kPlan});
    trace_.EndStep();
    trace_.Stop();
    const bool starts = trace_.Start(path_ + ".child", "path");
    _exit(starts ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(std::filesystem::remove(path_ + ".child"));
  trace_.EndStep();
  EXPECT_EQ(NamesOf(Spans()), (std::vector<std::string>{"step", "draft"}));
  trace_.Stop();
}

TEST_F(StepTraceTest, AnEngineTracesItsStepsAndThoseThatThrow) {
  const EngineConfig config = testing::SmallConfig();
  testing::ScriptedExecutor executor(testing::kVocabSize, config.num_blocks, config.block_size,
                                     testing::CountingLogits);
  testing::TestEngine engine(config, executor, nullptr);
  ASSERT_TRUE(engine.StartTrace(path_));
  engine.Submit(std::vector<TokenId>{1, 2, 3}, testing::Greedy(3));
  executor.FailAfter(1);
  engine.Step();
  EXPECT_THROW(engine.Step(), std::runtime_error);
  testing::RunToEnd(engine);
  std::vector<Json> steps;
  for (const Json& span : Spans()) {
    if (span["name"] == "step") steps.push_back(span["args"]);
  }
  ASSERT_EQ(steps.size(), 4u);
  EXPECT_EQ(steps[0]["requests"][0]["rows"], 3);
  EXPECT_EQ(steps[0]["requests"][0]["emitted_tokens"], 1);
  EXPECT_EQ(steps[1]["failed"], true);
  EXPECT_EQ(steps[1]["requests"][0]["emitted_tokens"], 0);
  EXPECT_FALSE(steps[2].contains("failed"));
  engine.StopTrace();
  EXPECT_EQ(engine.metrics().num_steps, 3);
}

}  // namespace
}  // namespace forerun
