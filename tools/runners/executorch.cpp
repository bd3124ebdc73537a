// Runs an ExecuTorch program (.pte) by the Module API; events come from its tracer, which also writes trace.etdump beside
// the outputs for ExecuTorch's own Inspector.
#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/platform/platform.h>

#include <memory>

#include "runner.h"

// in libexecutorch_threadpool.so; its header is not in the wheel
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using edgeq::Error;
using edgeq::Event;
using edgeq::Output;
using edgeq::TensorType;
using executorch::aten::ScalarType;
using executorch::aten::Tensor;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

const std::pair<ScalarType, const char*> DTYPES[] = {
    {ScalarType::Float, "float32"}, {ScalarType::Char, "int8"},     {ScalarType::Byte, "uint8"},
    {ScalarType::Int, "int32"},     {ScalarType::Long, "int64"},    {ScalarType::Bool, "bool"},
    {ScalarType::Half, "float16"},  {ScalarType::Double, "float64"}, {ScalarType::Short, "int16"},
};

const char* name_of(ScalarType type) {
  for (const auto& [known, name] : DTYPES)
    if (known == type) return name;
  throw Error("the program has a tensor of ExecuTorch's type " + std::to_string(static_cast<int>(type)) +
              ", which this runner does not know");
}

template <typename T>
T checked(executorch::runtime::Result<T> result, const std::string& what) {
  if (!result.ok()) throw Error(what + ": ExecuTorch's error " + std::to_string(static_cast<int>(result.error())));
  return std::move(result.get());
}

// An ETDump that also remembers what it was told, one list of events for each run.
class Tracer : public executorch::etdump::ETDumpGen {
  using Entry = executorch::runtime::EventTracerEntry;

 public:
  struct Record {
    std::string name;
    const char* kind;
    int instruction;
    double ms;
  };
  std::vector<Record> records;

  Entry start_profiling(const char* name, executorch::runtime::ChainID chain,
                        executorch::runtime::DebugHandle handle) override {
    const Entry entry = ETDumpGen::start_profiling(name, chain, handle);
    open_.push_back({name, current_debug_handle(), edgeq::Clock::now()});
    return entry;
  }

  void end_profiling(Entry entry) override {
    const Open& begun = open_.back();
    const double ms = edgeq::ms_since(begun.start);
    const bool of_program = begun.name == "OPERATOR_CALL" || begun.name == "DELEGATE_CALL";
    const char* kind = begun.name == "OPERATOR_CALL" ? "kernel" : begun.name == "DELEGATE_CALL" ? "delegate" : "runtime";
    records.push_back({begun.name, kind, of_program ? static_cast<int>(begun.instruction) : -1, ms});
    open_.pop_back();
    ETDumpGen::end_profiling(entry);
  }

  void log_profiling_delegate(const char* name, executorch::runtime::DelegateDebugIntId index, et_timestamp_t start,
                              et_timestamp_t end, const void* metadata, size_t size) override {
    const auto ratio = executorch::runtime::pal_ticks_to_ns_multiplier();
    const double ms = static_cast<double>(end - start) * ratio.numerator / ratio.denominator / 1e6;
    records.push_back({name ? name : "operator " + std::to_string(index), "delegated",
                       static_cast<int>(current_debug_handle()), ms});
    ETDumpGen::log_profiling_delegate(name, index, start, end, metadata, size);
  }

 private:
  struct Open {
    std::string name;
    executorch::runtime::DebugHandle instruction;
    edgeq::Clock::time_point start;
  };
  std::vector<Open> open_;
};

// Warnings and notes of the runtime are not for the one sentence on stderr.
void log_errors(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t) {
  if (level == kError || level == kFatal) std::fprintf(stderr, "%s\n", message);
}

class ExecuTorch : public edgeq::Engine {
 public:
  std::string runtime() const override { return EDGEQ_RUNTIME; }

  void load(const edgeq::Options& options, const std::vector<TensorType>&) override {
    executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(static_cast<uint32_t>(options.threads));
    options_ = options;
    module_ = std::make_unique<Module>(options.model, Module::LoadMode::File);
    open(*module_);
    const auto meta = checked(module_->method_meta("forward"), options.model);
    for (size_t i = 0; i < meta.num_inputs(); ++i) {
      const auto input = checked(meta.input_tensor_meta(i), options.model + ", input " + std::to_string(i));
      types_.push_back({name_of(input.scalar_type()), {input.sizes().begin(), input.sizes().end()}});
      scalar_types_.push_back(input.scalar_type());
    }
    values_.resize(types_.size());
    tensors_.resize(types_.size());
  }

  std::vector<TensorType> inputs() const override { return types_; }

  void set_input(size_t index, const std::vector<char>& values) override {
    values_[index] = values;
    const auto& shape = types_[index].shape;
    tensors_[index] = executorch::extension::from_blob(
        values_[index].data(), {shape.begin(), shape.end()}, scalar_types_[index]);
  }

  void run() override { results_ = execute(*module_); }

  std::vector<Output> outputs() override {
    std::vector<Output> found;
    for (const EValue& value : results_) {
      if (!value.isTensor()) throw Error(options_.model + " returns something that is no tensor");
      const Tensor& tensor = value.toTensor();
      const TensorType type{name_of(tensor.scalar_type()), {tensor.sizes().begin(), tensor.sizes().end()}};
      found.push_back({type, tensor.const_data_ptr()});
    }
    return found;
  }

  void profiled_run(std::vector<Event>& events) override {
    if (!traced_) {
      auto tracer = std::make_unique<Tracer>();
      tracer_ = tracer.get();
      traced_ = std::make_unique<Module>(options_.model, Module::LoadMode::File, std::move(tracer));
      open(*traced_);
      for (int i = 0; i <= options_.warmup; ++i) execute(*traced_);
    }
    tracer_->records.clear();
    execute(*traced_);
    if (events.empty()) {
      for (const auto& record : tracer_->records) events.push_back({record.name, record.kind, record.instruction, {}});
    }
    if (events.size() != tracer_->records.size()) throw Error("two profiled runs had different events");
    for (size_t i = 0; i < events.size(); ++i) events[i].ms.push_back(tracer_->records[i].ms);
  }

  void write_trace() {
    if (!tracer_) return;
    const auto dump = tracer_->get_etdump_data();
    if (dump.buf) edgeq::write_file(options_.output + "/trace.etdump", dump.buf, dump.size);
    std::free(dump.buf);
  }

 private:
  void open(Module& module) {
    const auto error = module.load_forward();
    if (error != executorch::runtime::Error::Ok)
      throw Error(options_.model + " cannot be loaded: ExecuTorch's error " + std::to_string(static_cast<int>(error)));
  }

  std::vector<EValue> execute(Module& module) {
    std::vector<EValue> arguments(tensors_.begin(), tensors_.end());
    return checked(module.forward(arguments), options_.model + " failed");
  }

  edgeq::Options options_;
  std::unique_ptr<Module> module_, traced_;
  Tracer* tracer_ = nullptr;
  std::vector<TensorType> types_;
  std::vector<ScalarType> scalar_types_;
  std::vector<std::vector<char>> values_;
  std::vector<TensorPtr> tensors_;
  std::vector<EValue> results_;
};

}  // namespace

int main(int argc, char** argv) {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(log_errors, __FILE__));
  ExecuTorch engine;
  const int status = edgeq::run_main(argc, argv, engine);
  if (status == 0) engine.write_trace();
  return status;
}
